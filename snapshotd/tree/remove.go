package tree

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// Remove removes what is called name in dir, with everything below it, however
// deep. It follows no link and enters nothing that is mounted there (EXDEV). A
// missing name is fine.
func Remove(ctx context.Context, dir int, name string) error {
	switch err := unix.Unlinkat(dir, name, 0); {
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
		if err := rmdir(p.here().fd, left); err != nil {
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
		if isDir {
			err = rmdir(l.fd, name)
		} else {
			err = unix.Unlinkat(l.fd, name, 0)
		}
		switch {
		case errors.Is(err, unix.ENOTEMPTY):
			return name, nil
		case err != nil && !errors.Is(err, unix.ENOENT):
			return "", err
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
