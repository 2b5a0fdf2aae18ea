package tree

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A Copying says how a tree is copied.
type Copying struct {
	// Links is an empty directory on the file system that is copied to, in
	// which files with several names are kept until all of them are there. It
	// is the table that would else be in memory, as large as whoever filled
	// the tree likes.
	Links int

	FreeMin int64 // bytes of free disk that are left alone
}

// Copy copies everything in the directory from into the empty directory to: with
// owners, modes, times, extended attributes, links among the files, devices,
// pipes, sockets and holes. The directory itself comes to look the same too.
// Contents are shared with the original where the file system can; shared says
// that all were, so that they are as durable as the original.
//
// No link is followed, no device or pipe opened, and nothing entered that is
// mounted there (EXDEV). Memory depends on nothing in the tree but its depth.
// Nobody else may change to; a disk that is too full is
// [errdefs.ErrResourceExhausted]. After an error a part is there.
func Copy(ctx context.Context, from, to int, how Copying) (shared bool, err error) {
	c := copier{ctx: ctx, Copying: how, to: to, shared: true}
	defer c.src.close()
	defer c.dst.close()
	err = c.run(from)
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		err = fmt.Errorf("copy: %v: %w", err, errdefs.ErrResourceExhausted)
	case err != nil:
		err = fmt.Errorf("copy: %w", err)
	}
	return c.shared, err
}

// A copier goes through two trees in step.
type copier struct {
	Copying
	ctx context.Context
	to  int

	src, dst path
	shared   bool
	noClones bool // the file system cannot share contents
	buf      []byte
	names    []byte // of extended attributes
	value    []byte // of one

	written int64 // bytes since the free disk was looked at
	entries int   // the same
}

func (c *copier) run(from int) error {
	if err := c.down(from, c.to, "."); err != nil {
		return err
	}
	for {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		name, isDir, err := c.src.next()
		if err != nil {
			return c.at("", err)
		}
		switch {
		case name == "":
			done, err := c.leave()
			if done || err != nil {
				return err
			}
			continue
		case isDir:
			err = c.enter(name)
		default:
			err = c.entry(name)
		}
		if err == nil {
			err = c.room()
		}
		if err != nil {
			return c.at(name, err)
		}
	}
}

// at says where in the tree an error happened.
func (c *copier) at(name string, err error) error {
	return fmt.Errorf("%.300q: %w", join(c.src.String(), name), err)
}

func (c *copier) down(src, dst int, name string) error {
	if err := c.src.down(src, name); err != nil {
		return err
	}
	l := c.src.here()
	if err := unix.Fstat(l.fd, &l.st); err != nil {
		return err
	}
	return c.dst.down(dst, name)
}

func (c *copier) enter(name string) error {
	dst := c.dst.here().fd
	if err := unix.Mkdirat(dst, name, 0o700); err != nil {
		return err
	}
	return c.down(c.src.here().fd, dst, name)
}

// leave makes the directory look like its original, now that nothing more is put
// into it, and goes up. done says that it was the last.
func (c *copier) leave() (done bool, err error) {
	src, dst := c.src.here(), c.dst.here().fd
	if err := c.looks(holder{fd: src.fd}, holder{fd: dst}, &src.st); err != nil {
		return false, c.at("", err)
	}
	if err := unix.UtimesNanoAt(dst, ".", times(&src.st), 0); err != nil {
		return false, c.at("", err)
	}
	if len(c.src.levels) == 1 {
		return true, nil
	}
	if _, err := c.src.up(); err != nil {
		return false, err
	}
	_, err = c.dst.up()
	return false, err
}

// entry copies what is no directory. What it is, is asked of a descriptor that
// opens nothing.
func (c *copier) entry(name string) error {
	src, dst := c.src.here().fd, c.dst.here().fd
	fd, err := openat2(src, name, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	key := ""
	if st.Nlink > 1 {
		key = fmt.Sprintf("%d-%d", st.Dev, st.Ino)
		if linked, err := c.link(key, name, &st); linked || err != nil {
			return err
		}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = c.file(fd, dst, name, &st)
	case unix.S_IFLNK:
		err = c.symlink(fd, dst, name, &st)
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
		err = c.node(fd, dst, name, &st)
	default:
		err = unix.ESTALE // somebody made a directory of it
	}
	if err == nil {
		err = unix.UtimesNanoAt(dst, name, times(&st), unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil && key != "" {
		err = unix.Linkat(dst, name, c.Links, key, 0)
	}
	return err
}

// link makes another name of a file that was copied already. The last one is that
// in Links, so that the file has at no time more names than its original.
func (c *copier) link(key, name string, original *unix.Stat_t) (linked bool, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(c.Links, key, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if st.Nlink >= original.Nlink {
		return true, unix.Renameat(c.Links, key, c.dst.here().fd, name)
	}
	return true, unix.Linkat(c.Links, key, c.dst.here().fd, name, 0)
}

func (c *copier) symlink(fd, dst int, name string, st *unix.Stat_t) error {
	var b [pathMax + 1]byte
	n, err := unix.Readlinkat(fd, "", b[:])
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(string(b[:n]), dst, name); err != nil {
		return err
	}
	return c.looks(held(fd), heldIn(dst, name), st)
}

// node copies a device, pipe or socket.
func (c *copier) node(fd, dst int, name string, st *unix.Stat_t) error {
	if err := unix.Mknodat(dst, name, st.Mode&unix.S_IFMT|0o600, int(st.Rdev)); err != nil { //nolint:gosec // the kernel's own number
		return err
	}
	return c.looks(held(fd), heldIn(dst, name), st)
}

const (
	// roomBytes and roomEntries are how much is copied before the free disk is
	// looked at again.
	roomBytes   = 4 << 20
	roomEntries = 1024
)

// room is [errdefs.ErrResourceExhausted] if the disk is too full to go on.
func (c *copier) room() error {
	if c.entries++; c.written < roomBytes && c.entries < roomEntries {
		return nil
	}
	c.written, c.entries = 0, 0
	var st unix.Statfs_t
	if err := unix.Fstatfs(c.to, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < c.FreeMin { //nolint:unconvert,gosec // 32 bits elsewhere
		return fmt.Errorf("%d MiB are free on the disk, %d are to be left: %w", free>>20, c.FreeMin>>20, errdefs.ErrResourceExhausted)
	}
	return nil
}

func times(st *unix.Stat_t) []unix.Timespec { return []unix.Timespec{st.Atim, st.Mtim} }

// byFD is a path to what a descriptor is of, whatever that is.
func byFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
