// Package detached makes mounts that are attached nowhere, with the ids of a
// container. Each is reached by its descriptor, from which it can be attached
// once, and is gone when that is closed.
package detached

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

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
	if err := SetUsers(f, users, recursive); err != nil {
		f.Close()
		return nil, fmt.Errorf("copy of mount %s: %w", path, err)
	}
	return f, nil
}

// SetUsers gives the ids of a user namespace to a mount that is attached nowhere
// and has its file system's.
func SetUsers(m, users *os.File, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Propagation: unix.MS_PRIVATE, Userns_fd: uint64(users.Fd())}
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

// Overlay stacks directories, the topmost first, with the options of mount(8) for
// the rest. The directories below have the ids of a user namespace; the upper
// one has its own, as files that are made there are the host's.
func Overlay(lower, options []string, users *os.File) (*os.File, error) {
	f, err := overlay(lower, options, users)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// Before 6.15 layers have to be mounted somewhere.
		return Apart(func() (*os.File, error) { return overlayHere(lower, options, users) })
	}
	return f, err
}

// overlay makes the mount with the new system calls.
func overlay(lower, options []string, users *os.File) (*os.File, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	defer unix.Close(fs)
	for _, dir := range lower {
		f, err := Copy(dir, users, false)
		if err != nil {
			return nil, err
		}
		defer f.Close() // the overlay has its own, once it is made
		if err := unix.FsconfigSetFd(fs, "lowerdir+", int(f.Fd())); err != nil {
			return nil, fmt.Errorf("overlay: lower directory %s: %w", dir, err)
		}
	}
	for _, o := range options {
		if key, value, ok := strings.Cut(o, "="); ok {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return nil, fmt.Errorf("overlay: option %.300q: %w", o, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// overlayHere mounts in the namespace that the calling thread is alone in: each
// directory over itself, with the ids, and the overlay over one of them.
func overlayHere(lower, options []string, users *os.File) (*os.File, error) {
	for _, dir := range lower {
		f, err := Copy(dir, users, false)
		if err != nil {
			return nil, err
		}
		err = unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("overlay: lower directory %s: %w", dir, err)
		}
	}
	// Short paths: all options together are a page at most.
	dir := common(lower)
	if err := unix.Chdir(dir); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	short := make([]string, len(lower))
	for i, l := range lower {
		short[i] = strings.TrimPrefix(l, dir+"/")
	}
	all := append([]string{"lowerdir=" + strings.Join(short, ":")}, options...)
	if err := unix.Mount("overlay", lower[0], "overlay", 0, strings.Join(all, ",")); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, lower[0], unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// common is the deepest directory that all paths are below.
func common(paths []string) string {
	dir := filepath.Dir(paths[0])
	for slices.ContainsFunc(paths, func(p string) bool { return !strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/") }) {
		dir = filepath.Dir(dir)
	}
	return dir
}
