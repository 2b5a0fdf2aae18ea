package driver

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/keep"
	"github.com/gantryd/gantry/snapshotd/tree"
)

// A Disk is every way drivers change the file system, but for what is inside a
// snapshot, and no other. It is here so that a test can stop the machine between
// any two changes.
type Disk interface {
	// Mkdir makes a directory of that mode, whatever the umask; one that is
	// there is fine.
	Mkdir(path string, mode fs.FileMode) error
	Chown(path string, uid, gid int) error

	// Rename gives what is at from another path, on the same file system, where
	// there is nothing.
	Rename(from, to string) error

	// SyncFS makes everything durable that was written to the file system
	// that path is on.
	SyncFS(path string) error

	// Publish makes a file of what write writes, durably, and with it the
	// directory that it is in: after a crash it is whole, or as it was before.
	// What is left of one that failed is called path and [Unpublished].
	Publish(path string, write func(f *os.File) error) error

	// RemoveTree removes a directory and what is in it; a missing one is fine.
	RemoveTree(ctx context.Context, path string) error

	Volumes

	// Append writes at the end of a file, which it makes if it is missing, and
	// RemoveFile removes one; a missing one is fine. Neither is durable before
	// the next SyncFS.
	Append(path string, b []byte) error
	RemoveFile(path string) error

	keep.Disk
}

// Unpublished is what the name of a file ends with that is being written.
const Unpublished = ".new"

// Files is the real disk.
type Files struct{}

var _ Disk = Files{}

// Mkdir implements Disk.
func (Files) Mkdir(path string, mode fs.FileMode) error {
	if err := os.Mkdir(path, mode); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// Chown implements Disk.
func (Files) Chown(path string, uid, gid int) error { return os.Lchown(path, uid, gid) }

// Rename implements Disk.
func (Files) Rename(from, to string) error {
	return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
}

// SyncFS implements Disk.
func (Files) SyncFS(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// Publish implements Disk.
func (Files) Publish(path string, write func(f *os.File) error) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	// A new file, that nobody has open: not what is left of another attempt.
	if err := os.Remove(path + Unpublished); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fd, err := unix.Openat(int(dir.Fd()), filepath.Base(path)+Unpublished,
		unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: path + Unpublished, Err: err}
	}
	f := os.NewFile(uintptr(fd), path+Unpublished)
	defer f.Close()
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if err := dir.Sync(); err != nil {
		return err
	}
	// The directory may be as new as the file.
	return syncDir(filepath.Dir(dir.Name()))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// RemoveTree implements Disk.
func (Files) RemoveTree(ctx context.Context, path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return tree.Remove(ctx, int(dir.Fd()), filepath.Base(path))
}

// OwnDir makes a directory of the daemon's own, and tightens it if it was
// found wider: what is in snapshots runs as anybody and is not to be reached
// from outside.
func OwnDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	return os.Chmod(path, 0o700)
}

// flagTopDir is ext4's FS_TOPDIR_FL: directories in it are spread over the
// disk. Without it, files are slow to make where many were removed shortly
// before, which is what unpacking after a collection does.
const flagTopDir = 0x00020000

// spread sets the flag where there is one.
func spread(path string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&flagTopDir != 0 {
		return
	}
	// A file system that cannot is as good as before.
	_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|flagTopDir))
}

// Append implements Disk.
func (Files) Append(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// RemoveFile implements Disk.
func (Files) RemoveFile(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Touch implements Disk.
func (Files) Touch(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// Remove implements Disk.
func (Files) Remove(path string) error { return os.Remove(path) }

// SyncDir implements Disk.
func (Files) SyncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
