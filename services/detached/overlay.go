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
	layers, done, err := copies(lower, users)
	defer done() // the overlay has its own, once it is made
	if err != nil {
		return nil, err
	}
	for _, f := range layers {
		if err := unix.FsconfigSetFd(fs, "lowerdir+", int(f.Fd())); err != nil {
			return nil, fmt.Errorf("overlay: lower directory %s: %w", f.Name(), err)
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

// copies are directories with the ids of a user namespace. Those that are on one
// mount are in one copy of it: the kernel takes its time over each that goes.
func copies(dirs []string, users *os.File) (all []*os.File, done func(), err error) {
	var whole *os.File
	done = func() {
		for _, f := range all {
			f.Close()
		}
		if whole != nil {
			whole.Close()
		}
	}
	root := common(dirs)
	if len(dirs) > 1 {
		// Without it, each has a copy of its own.
		whole, _ = Copy(root, users, false)
	}
	for _, dir := range dirs {
		f := within(whole, dir, root)
		if f == nil {
			if f, err = Copy(dir, users, false); err != nil {
				return all, done, err
			}
		}
		all = append(all, f)
	}
	return all, done, nil
}

// within opens a directory below root in the copy of root, if that is where it
// is: on another mount it is not.
func within(whole *os.File, dir, root string) *os.File {
	if whole == nil {
		return nil
	}
	fd, err := unix.Openat2(int(whole.Fd()), strings.TrimPrefix(strings.TrimPrefix(dir, root), "/"), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), dir)
	var copied, own unix.Stat_t
	if unix.Fstat(fd, &copied) != nil || unix.Stat(dir, &own) != nil || copied.Dev != own.Dev || copied.Ino != own.Ino {
		f.Close()
		return nil
	}
	return f
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
