package tree

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// Remove removes what is called name in dir, with everything below it, however
// deep, also what is marked as immutable or as one that can only be appended to.
// It follows no link and enters nothing that is mounted there (EXDEV). A missing
// name is fine.
func Remove(ctx context.Context, dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if errors.Is(err, unix.EPERM) && loosenName(dir, name) {
		err = unix.Unlinkat(dir, name, 0)
	}
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.EISDIR):
		return err
	}
	if err := rmdir(dir, name); !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	var p path
	defer p.close()
	if err := p.down(dir, name); err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		full, err := p.empty()
		switch {
		case err != nil:
			return err
		case full != "":
			if err := p.down(p.here().fd, full); err != nil {
				return err
			}
			continue
		case len(p.levels) == 1:
			return rmdir(dir, name)
		}
		left, err := p.up()
		if err != nil {
			return err
		}
		if err := p.here().remove(left, true); err != nil {
			return err
		}
	}
}

// empty removes what it can from the directory and returns the name of the
// first one in it that has to be emptied before.
func (p *path) empty() (full string, err error) {
	l := p.here()
	if l.scan == nil {
		// From the beginning, whatever was read of it before it was closed.
		if _, err := unix.Seek(l.fd, 0, 0); err != nil {
			return "", err
		}
		l.scan = newScanner(l.fd)
	}
	for {
		name, isDir, err := l.scan.next()
		if name == "" || err != nil {
			return "", err
		}
		switch err := l.remove(name, isDir); {
		case errors.Is(err, unix.ENOTEMPTY):
			return name, nil
		case err != nil && !errors.Is(err, unix.ENOENT):
			return "", err
		}
	}
}

// remove removes a file or an empty directory from this one, whatever they are
// marked as.
func (l *level) remove(name string, isDir bool) error {
	for tried := false; ; tried = true {
		var err error
		if isDir {
			err = rmdir(l.fd, name)
		} else {
			err = unix.Unlinkat(l.fd, name, 0)
		}
		if tried || !errors.Is(err, unix.EPERM) {
			return err
		}
		here, there := Loosen(l.fd), loosenName(l.fd, name)
		if !here && !there {
			return err
		}
	}
}

// loosenName is Loosen of what is called name in dir. Only files and directories
// can be marked.
func loosenName(dir int, name string) (loosened bool) {
	if fd, err := OpenChild(dir, name); err == nil {
		defer unix.Close(fd)
		return Loosen(fd)
	}
	f, err := OpenFile(dir, name)
	if err != nil {
		return false
	}
	defer f.Close()
	return Loosen(int(f.Fd()))
}

// marks are what keeps even root from removing a file, or from a directory: with
// CAP_LINUX_IMMUTABLE, who ran in a container has set them. The flags of inodes
// have the values that statx has.
const marks = unix.STATX_ATTR_IMMUTABLE | unix.STATX_ATTR_APPEND

// Loosen takes the marks from a file or directory that keep it from being removed,
// and tells whether it had any.
func Loosen(fd int) (loosened bool) {
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err != nil || flags&marks == 0 {
		return false
	}
	return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags&^marks)) == nil
}

// Sift removes what is in a directory, but for what keep says by its path from
// there, and the directories that this is in. It goes as deep as it has to with
// few descriptors.
func Sift(ctx context.Context, dir int, keep func(path string) bool) error {
	var p path
	defer p.close()
	if err := p.down(dir, "."); err != nil {
		return err
	}
	for at := ""; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		name, isDir, err := p.next()
		if err != nil {
			return err
		}
		switch full := join(at, name); {
		case name == "" && len(p.levels) == 1:
			return nil
		case name == "":
			kept := keep(at)
			at = parent(at)
			left, err := p.up()
			if err != nil {
				return err
			}
			if kept {
				continue
			}
			if err := p.here().remove(left, true); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
				return err
			}
		case len(full) > pathMax:
			return unix.ENAMETOOLONG
		case isDir:
			at = full
			if err := p.down(p.here().fd, name); err != nil {
				return err
			}
		case !keep(full):
			if err := p.here().remove(name, false); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
		}
	}
}

func rmdir(dir int, name string) error {
	err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EEXIST):
		return unix.ENOTEMPTY
	}
	return err
}
