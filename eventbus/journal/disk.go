package journal

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A disk is the directory of a journal.
type disk interface {
	List() ([]string, error)
	Create(name string) (file, error) // one that is not there
	Open(name string) (file, error)
	ReadFile(name string) ([]byte, error)
	Rename(from, to string) error
	Remove(name string) error
	Sync() error // of the names
}

// A file is one of it.
type file interface {
	ReadAt(b []byte, off int64) (int, error)
	WriteAt(b []byte, off int64) (int, error)
	Sync() error
	Reserve(size int64) error
	Truncate(size int64) error
	Size() (int64, error)
	Close() error
}

type directory string

func (d directory) path(name string) string { return filepath.Join(string(d), name) }

func (d directory) List() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

func (d directory) Create(name string) (file, error) {
	return d.open(name, os.O_CREATE|os.O_EXCL|os.O_RDWR)
}

func (d directory) Open(name string) (file, error) { return d.open(name, os.O_RDWR) }

func (d directory) open(name string, flags int) (file, error) {
	f, err := os.OpenFile(d.path(name), flags|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	return diskFile{f}, nil
}

func (d directory) ReadFile(name string) ([]byte, error) { return os.ReadFile(d.path(name)) }
func (d directory) Rename(from, to string) error         { return os.Rename(d.path(from), d.path(to)) }
func (d directory) Remove(name string) error             { return os.RemoveAll(d.path(name)) }

func (d directory) Sync() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

type diskFile struct{ *os.File }

func (f diskFile) Sync() error { return unix.Fdatasync(int(f.Fd())) }

// Reserve takes the space of a file beforehand, where the file system can.
func (f diskFile) Reserve(size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return err
}

func (f diskFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// isStrange is about a name that is there and is no file.
func isStrange(err error) bool { return errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ELOOP) }

// readAt is f.ReadAt, but that what the disk cannot read is zeros, as damage is
// passed over and all that is around it is to be had.
func readAt(f file, b []byte, off int64) (int, error) {
	n, err := f.ReadAt(b, off)
	if !errors.Is(err, unix.EIO) {
		return n, err
	}
	const piece = 4 << 10
	for n = 0; n < len(b); {
		// Up to a boundary of the file, so that a sector costs one piece.
		want := min(piece-int(off+int64(n))%piece, len(b)-n)
		got, err := f.ReadAt(b[n:n+want], off+int64(n))
		switch {
		case errors.Is(err, unix.EIO):
			clear(b[n : n+want])
			got = want
		case err != nil:
			return n + got, err
		}
		n += got
	}
	return n, nil
}
