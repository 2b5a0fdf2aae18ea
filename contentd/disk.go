package contentd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/gated"
)

// disk is every way this package changes the file system, and no other. It is
// here so that a test can stop the machine between any two changes.
type disk interface {
	// MkdirAll makes a directory that only its owner can enter, or makes one
	// that is there so.
	MkdirAll(dir string) error
	// Create makes a file that is not there.
	Create(name string) (file, error)
	// Reopen opens a file to write on.
	Reopen(name string) (file, error)
	// Seal opens a file for reading that nobody can write; held says whether
	// that was so until now. It is errWritable while somebody could.
	Seal(name string) (f file, held func() error, err error)
	Rename(from, to string) error
	Remove(name string) error
	SyncDir(dir string) error
	// SetNote and RemoveNote change an attribute of a file, which is durable
	// when the file is next synced.
	SetNote(path, name string, value []byte) error
	RemoveNote(path, name string) error
	// Free returns how many bytes can be written below dir.
	Free(dir string) (int64, error)
}

// A file is an ingest's.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Chmod(mode fs.FileMode) error
	Sync() error
	// StartSync has a part of the file written soon, and promises nothing.
	StartSync(off, n int64)
	Stat() (fs.FileInfo, error)
}

// database is every way this package changes records, for the same reason.
type database = gated.Records

// osDisk is the real one.
type osDisk struct{}

const dirMode, ingestMode, blobMode = 0o700, 0o600, 0o444

func (osDisk) MkdirAll(dir string) error {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	fi, err := os.Lstat(dir)
	switch {
	case err != nil:
		return err
	case !fi.IsDir():
		return fmt.Errorf("%s is not a directory: %w", dir, errdefs.ErrFailedPrecondition)
	case fi.Mode().Perm() == dirMode:
		return nil
	}
	return os.Chmod(dir, dirMode)
}

func (osDisk) Create(name string) (file, error) {
	return orNil(os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, ingestMode))
}

func (osDisk) Reopen(name string) (file, error) {
	// A commit that failed may have made it read-only.
	if err := os.Chmod(name, ingestMode); err != nil {
		return nil, err
	}
	return orNil(os.OpenFile(name, os.O_RDWR|unix.O_NOFOLLOW, 0))
}

// An osFile is a file of osDisk.
type osFile struct{ *os.File }

func (f osFile) StartSync(off, n int64) {
	// What it could say the sync at the end says.
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// orNil keeps a nil *os.File from becoming a file that is not nil.
func orNil(f *os.File, err error) (file, error) {
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osDisk) Seal(name string) (file, func() error, error) {
	f, err := seal(name)
	if err != nil {
		return nil, nil, err
	}
	return osFile{f}, func() error { return sealed(f) }, nil
}

func (osDisk) Rename(from, to string) error { return os.Rename(from, to) }

func (osDisk) Remove(name string) error { return os.Remove(name) }

func (osDisk) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (osDisk) Free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// kind gives an error of the system the kind that callers decide by, if any.
func kind(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}
