package taskd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// disk is every way this package changes the file system, and no other. It is
// here so that a test can end the daemon between any two changes.
//
// Nothing in it syncs: bundles need not outlive a power loss, because no
// container does.
type disk interface {
	Mkdir(dir string, mode fs.FileMode) error
	MkdirAll(dir string, mode fs.FileMode) error
	WriteFile(name string, b []byte) error
	// Replace writes a file whose name appears when its bytes are whole.
	Replace(name string, b []byte) error
	Symlink(to, name string) error
	Mkfifo(name string) error
	// Share lets a group pass through a directory.
	Share(dir string, gid int) error
	Rename(from, to string) error
	// RemoveTree removes what is in a directory of ours, and detaches what is
	// mounted there instead of going into it. A missing one is fine.
	RemoveTree(dir string) error
}

// realDisk is the disk.
type realDisk struct{}

const fileMode = 0o600

func (realDisk) Mkdir(dir string, mode fs.FileMode) error {
	if err := os.Mkdir(dir, mode); err != nil {
		return err
	}
	return os.Chmod(dir, mode) // whatever the umask
}

func (realDisk) MkdirAll(dir string, mode fs.FileMode) error {
	st, err := os.Stat(dir)
	if err == nil && st.IsDir() && st.Mode().Perm() == mode {
		return nil
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return err
	}
	return os.Chmod(dir, mode) // whatever the umask, and whatever it was
}

func (realDisk) WriteFile(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

func (d realDisk) Replace(name string, b []byte) error {
	next := filepath.Join(filepath.Dir(name), "."+filepath.Base(name))
	if err := os.WriteFile(next, b, fileMode); err != nil {
		return err
	}
	return os.Rename(next, name)
}

func (realDisk) Symlink(to, name string) error { return os.Symlink(to, name) }

func (realDisk) Mkfifo(name string) error {
	if err := unix.Mkfifo(name, fileMode); err != nil {
		return &fs.PathError{Op: "mkfifo", Path: name, Err: err}
	}
	return nil
}

func (realDisk) Share(dir string, gid int) error {
	if err := os.Chown(dir, -1, gid); err != nil {
		return err
	}
	return os.Chmod(dir, 0o710)
}

func (realDisk) Rename(from, to string) error { return os.Rename(from, to) }

func (realDisk) RemoveTree(dir string) error { return removeTree(dir) }

// removeTree never crosses a mount: what is mounted in a bundle is a
// container's root file system, and its files are a snapshot's.
func removeTree(path string) error {
	isDir, err := detach(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if isDir {
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := removeTree(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// detachMax is how many mounts may lie upon each other.
const detachMax = 64

// detach detaches whatever is mounted at path and reports whether what is left
// is a directory.
func detach(path string) (isDir bool, err error) {
	for range detachMax {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
		if err != nil {
			return false, &fs.PathError{Op: "statx", Path: path, Err: err}
		}
		if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
			return false, fmt.Errorf("%s: this kernel does not tell what is mounted (want 5.8 or newer)", path)
		}
		if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
			return st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return false, &fs.PathError{Op: "umount", Path: path, Err: err}
		}
	}
	return false, fmt.Errorf("%s: more than %d mounts upon each other", path, detachMax)
}
