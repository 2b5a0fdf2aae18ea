// Package detached makes mounts that are attached nowhere, with the ids of a
// container. Each is reached by its descriptor, from which it can be attached
// once, and is gone when that is closed.
package detached

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Copy is a copy of the mount that path is in, from path on, which has the ids of
// a user namespace. Recursive, what is mounted below is copied with it.
// [errors.ErrUnsupported] says that the kernel or the file system has no such
// mounts.
func Copy(path string, users *os.File, recursive bool) (*os.File, error) {
	var below uint
	if recursive {
		below = unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|below)
	if err != nil {
		return nil, fmt.Errorf("copy of mount %s: %w", path, unsupported(err))
	}
	f := os.NewFile(uintptr(fd), path)
	// Nothing that is mounted or unmounted elsewhere is to reach it.
	if err := setUsers(f, users, recursive, unix.MS_PRIVATE); err != nil {
		f.Close()
		return nil, fmt.Errorf("copy of mount %s: %w", path, err)
	}
	return f, nil
}

// SetUsers gives the ids of a user namespace to a mount that is attached nowhere
// and has its file system's.
func SetUsers(m, users *os.File, recursive bool) error { return setUsers(m, users, recursive, 0) }

func setUsers(m, users *os.File, recursive bool, propagation uint64) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Propagation: propagation, Userns_fd: uint64(users.Fd())}
	if err := unix.MountSetattr(int(m.Fd()), "", flags, &attr); err != nil {
		return fmt.Errorf("mapped ids: %w", unsupported(err))
	}
	return nil
}

// unsupported adds to the kernel's words for what it does not have.
func unsupported(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("%w (%w)", err, errors.ErrUnsupported)
	}
	return err
}
