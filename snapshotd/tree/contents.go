package tree

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

// spanMax is how much is copied by one call, in bytes; in between, the copy can be
// cancelled.
const spanMax = roomBytes

// file copies a regular file, which path is a descriptor of.
func (c *copier) file(path, dst int, name string, st *unix.Stat_t) error {
	in, err := unix.Open(byFD(path), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	out, err := unix.Openat(dst, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(out)
	if err := c.contents(in, out, st.Size); err != nil {
		return err
	}
	return c.looks(holder{fd: in}, holder{fd: out}, st)
}

// contents shares or copies what is in a file.
func (c *copier) contents(in, out int, size int64) error {
	if size == 0 {
		return nil
	}
	if !c.noClones {
		switch err := unix.IoctlFileClone(out, in); {
		case err == nil:
			return nil
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOSYS):
			c.noClones = true
		case errors.Is(err, unix.EINVAL): // not this one
		default:
			return err
		}
	}
	c.shared = false
	for at := int64(0); at < size; {
		data, err := unix.Seek(in, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole up to the end
		}
		if err != nil {
			return err
		}
		if at, err = unix.Seek(in, data, unix.SEEK_HOLE); err != nil {
			return err
		}
		if err := c.span(in, out, data, min(at, size)); err != nil {
			return err
		}
	}
	return unix.Ftruncate(out, size)
}

// span copies the bytes from a place in the file to another.
func (c *copier) span(in, out int, from, to int64) error {
	for from < to {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n, err := c.some(in, out, from, min(to-from, spanMax))
		if err != nil {
			return err
		}
		from += n
		c.written += n
		if c.written >= roomBytes {
			if err := c.room(); err != nil {
				return err
			}
		}
	}
	return nil
}

// some copies at least one byte.
func (c *copier) some(in, out int, at, size int64) (int64, error) {
	r, w := at, at
	n, err := unix.CopyFileRange(in, &r, out, &w, int(size), 0)
	switch {
	case err == nil && n > 0:
		return int64(n), nil
	case err == nil:
		return 0, io.ErrUnexpectedEOF // somebody cut it
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
	default:
		return 0, err
	}
	if c.buf == nil {
		c.buf = make([]byte, 256<<10)
	}
	n, err = unix.Pread(in, c.buf[:min(size, int64(len(c.buf)))], at)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err = unix.Pwrite(out, c.buf[:n], at)
	return int64(n), err
}
