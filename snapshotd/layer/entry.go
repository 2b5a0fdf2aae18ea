package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/tree"
)

// create makes what hdr describes, called base in the directory that dir names,
// in the place of what was there.
func (x *extractor) create(dir, base string, hdr *tar.Header, a *attributes, body io.Reader) error {
	if base == "" {
		if hdr.Typeflag != tar.TypeDir {
			return fmt.Errorf("the root is not a directory: %w", errdefs.ErrInvalidArgument)
		}
		return x.rootDir(a)
	}
	d, err := x.dirs.get(dir)
	if err != nil {
		return x.lacks(err)
	}
	if !x.made.off {
		at, err := x.dirs.path(d)
		if err != nil {
			return err
		}
		x.made.add(join(at, base))
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return x.dir(d, dir, base, a)
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse: //nolint:staticcheck // old archives have TypeRegA
		return x.file(d, dir, base, hdr.Size, a, body)
	case tar.TypeSymlink:
		return x.symlink(d, dir, base, hdr.Linkname, a)
	case tar.TypeLink:
		return x.link(dir, base, hdr.Linkname)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return x.node(d, dir, base, hdr, a)
	}
	return fmt.Errorf("entry of type %q: %w", hdr.Typeflag, errdefs.ErrInvalidArgument)
}

// replace calls make, and again after it has removed what is in the way.
func (x *extractor) replace(d *directory, dir, base string, make func(fd int) error) error {
	err := make(d.fd)
	for tries := 0; errors.Is(err, unix.EEXIST) && tries < 3; tries++ {
		if err := x.displaces(d.fd, base, false); err != nil {
			return err
		}
		if err := tree.Remove(x.ctx, d.fd, base); err != nil {
			return err
		}
		x.dirs.forget()
		if d, err = x.dirs.get(dir); err != nil {
			return err
		}
		err = make(d.fd)
	}
	return err
}

func (x *extractor) rootDir(a *attributes) error {
	fd, err := tree.Reopen(int(x.root.Fd()))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return x.dirAttributes(fd, "", a)
}

func (x *extractor) dir(d *directory, dir, base string, a *attributes) error {
	fd := -1
	err := x.replace(d, dir, base, func(at int) error {
		mkErr := unix.Mkdirat(at, base, 0o700)
		if mkErr != nil && !errors.Is(mkErr, unix.EEXIST) {
			return mkErr
		}
		var err error
		if fd, err = tree.OpenChild(at, base); err != nil && mkErr != nil {
			// In the way is something else.
			if err := x.displaces(at, base, true); err != nil {
				return err
			}
			return mkErr
		}
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return x.dirAttributes(fd, join(dir, base), a)
}

// dirAttributes sets all but the times, which what is put into the directory
// would change.
func (x *extractor) dirAttributes(fd int, name string, a *attributes) error {
	if err := a.set(fd, &x.dropped); err != nil {
		return err
	}
	if err := x.explicit(fd); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	x.times.add(name, st.Ino, a)
	return nil
}

// implicit marks a directory that was made on the way to an entry.
func (x *extractor) implicit(dir int, name string) error {
	if !x.target.Detached {
		return nil
	}
	return mark(dir, name, ImplicitAttr, Implicit, 0)
}

// markRoot marks the root, which is implicit until there is an entry for it.
func (x *extractor) markRoot(implicit bool) error {
	err := mark(x.own, ".", DetachedAttr, Free, unix.XATTR_CREATE)
	if err != nil && !errors.Is(err, unix.EEXIST) || !implicit {
		return err
	}
	return mark(x.own, ".", ImplicitAttr, Implicit, 0)
}

func mark(dir int, name, attr, value string, flags int) error {
	fd, err := tree.OpenChild(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fsetxattr(fd, attr, []byte(value), flags)
}

func (x *extractor) file(d *directory, dir, base string, size int64, a *attributes, body io.Reader) error {
	fd := -1
	err := x.replace(d, dir, base, func(at int) (err error) {
		fd, err = unix.Openat(at, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	return x.contents(fd, size, a, body)
}

// contents reads the body, and leaves the rest to the finisher, whose the
// descriptor is from here on.
func (x *extractor) contents(fd int, size int64, a *attributes, body io.Reader) error {
	for at := int64(0); ; {
		b := x.finisher.buffer()
		n, err := x.piece(b[:min(size-at, pieceSize)], body)
		p := piece{fd: fd, at: at, body: b[:n], last: true}
		if err != nil {
			p.body = b[:0]
			_ = x.finisher.add(p) // only to close it
			return err
		}
		if at += int64(n); at == size {
			p.attributes = a
			return x.finisher.add(p)
		}
		p.last = false
		if err := x.finisher.add(p); err != nil {
			_ = x.finisher.add(piece{fd: fd, last: true})
			return err
		}
	}
}

// piece reads the next bytes of a body, and looks whether there is room for them.
// Long runs of zeros become holes, whatever the archive says of holes itself.
func (x *extractor) piece(b []byte, body io.Reader) (int, error) {
	if err := x.ctx.Err(); err != nil {
		return 0, err
	}
	before := x.stream.size
	n, err := io.ReadFull(body, b)
	if err != nil {
		return 0, x.archive(err)
	}
	if x.holes += int64(n) - min(x.stream.size-before, int64(n)); x.holes > holesMax {
		return 0, fmt.Errorf("sparse files of more than %d bytes: %w", int64(holesMax), errdefs.ErrInvalidArgument)
	}
	if x.written += int64(n); x.written >= spaceBytes {
		return n, x.space()
	}
	return n, nil
}

func (x *extractor) symlink(d *directory, dir, base, target string, a *attributes) error {
	if target == "" || len(target) > pathMax || bytes.IndexByte([]byte(target), 0) >= 0 {
		return fmt.Errorf("link to %.100q: %w", target, errdefs.ErrInvalidArgument)
	}
	err := x.replace(d, dir, base, func(at int) error { return unix.Symlinkat(target, at, base) })
	if err != nil {
		return err
	}
	if d, err = x.dirs.get(dir); err != nil {
		return err
	}
	return a.setLink(d.fd, base)
}

// link makes another name of a file. Its source is inside the tree whatever
// its name says, and if it is a link itself, it is that link.
func (x *extractor) link(dir, base, target string) error {
	name, err := clean(target)
	if err != nil {
		return fmt.Errorf("link to %.100q: %w", target, err)
	}
	fromDir, from := split(name)
	if from == "" || name == join(dir, base) {
		return fmt.Errorf("link to %.100q: %w", target, errdefs.ErrInvalidArgument)
	}
	src, err := tree.Open(int(x.root.Fd()), fromDir)
	if err != nil {
		return fmt.Errorf("link to %.100q: %w", target, x.lacks(err))
	}
	defer unix.Close(src)
	var st unix.Stat_t
	err = unix.Fstatat(src, from, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && isWhiteout(&st) {
		err = unix.ENOENT
	}
	if err != nil {
		return fmt.Errorf("link to %.100q: %w", target, x.lacks(err))
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return fmt.Errorf("link to directory %.100q: %w", target, errdefs.ErrInvalidArgument)
	}
	if err := x.lift(src, from); err != nil {
		return err
	}
	d, err := x.dirs.get(dir)
	if err != nil {
		return err
	}
	err = x.replace(d, dir, base, func(at int) error { return unix.Linkat(src, from, at, base, 0) })
	if err != nil {
		return fmt.Errorf("link to %.100q: %w", target, err)
	}
	return nil
}

// lift notes that a file of a layer below is about to be copied into this one,
// where it has to be told from a file of this one.
func (x *extractor) lift(dir int, name string) error {
	if !x.stacked {
		return nil
	}
	d := directory{fd: dir}
	at, err := x.dirs.path(&d)
	if err != nil {
		return err
	}
	if in, err := x.owns(at, name); err != nil || in {
		return err
	}
	return x.whiteouts.lift(join(at, name))
}

func (x *extractor) node(d *directory, dir, base string, hdr *tar.Header, a *attributes) error {
	kinds := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}
	kind, dev := kinds[hdr.Typeflag], 0
	if kind != unix.S_IFIFO {
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return fmt.Errorf("device %d:%d: %w", hdr.Devmajor, hdr.Devminor, errdefs.ErrInvalidArgument)
		}
		dev = int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
		if kind == unix.S_IFCHR && dev == 0 {
			return fmt.Errorf("device 0:0 is how overlayfs spells a whiteout: %w", errdefs.ErrInvalidArgument)
		}
		if x.target.Rootless {
			return nil
		}
	}
	err := x.replace(d, dir, base, func(at int) error { return unix.Mknodat(at, base, kind|0o600, dev) })
	if err != nil {
		return err
	}
	if d, err = x.dirs.get(dir); err != nil {
		return err
	}
	return a.setNode(d.fd, base)
}
