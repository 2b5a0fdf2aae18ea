package kernel

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/idmap"
	"github.com/gantryd/gantry/services/mount"
)

// OverlayOf reads the description of an overlay, whose paths are absolute. One of
// ids that are no mapping is [errdefs.ErrInvalidArgument].
func OverlayOf(m mount.Mount) (Overlay, error) {
	ids, options, err := idmap.Take(m.Options)
	o := Overlay{Dir: "/", IDs: ids}
	for _, opt := range options {
		key, value, _ := strings.Cut(opt, "=")
		switch key {
		case "upperdir":
			o.Upper = value
		case "workdir":
			o.Work = value
		case "lowerdir":
			o.Lower = strings.Split(value, ":")
		case "ro", "rw":
		default:
			o.Options = append(o.Options, opt)
		}
	}
	return o, err
}

// Attach makes a mount that is described, and returns its root; readOnly, nothing
// can be written through it. Like other mounts of this package it is attached
// nowhere. What only a program of its own can mount is
// [errors.ErrUnsupported]. An overlay is made by [Linux.Overlay].
func Attach(m mount.Mount, readOnly bool) (*os.File, error) {
	ids, options, err := idmap.Take(m.Options)
	if err != nil {
		return nil, err
	}
	m.Options = options
	var fd int
	if m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind") {
		fd, err = clone(m)
	} else {
		fd, err = create(m)
	}
	if err != nil {
		return nil, fmt.Errorf("mount %s %s: %w", m.Type, m.Source, err)
	}
	// By this name it can be opened as others are.
	f := os.NewFile(uintptr(fd), fmt.Sprintf("/proc/self/fd/%d", fd))
	if err := setIDs(f, ids, slices.Contains(m.Options, "rbind")); err != nil {
		f.Close()
		return nil, fmt.Errorf("mount %s %s: %w", m.Type, m.Source, err)
	}
	if readOnly || slices.Contains(m.Options, "ro") {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
			f.Close()
			return nil, fmt.Errorf("mount %s %s read-only: %w", m.Type, m.Source, err)
		}
	}
	return f, nil
}

// clone is a bind mount.
func clone(m mount.Mount) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if slices.Contains(m.Options, "rbind") {
		flags |= unix.AT_RECURSIVE
	}
	return unix.OpenTree(unix.AT_FDCWD, m.Source, flags)
}

// create mounts a file system of its own.
func create(m mount.Mount) (int, error) {
	fs, err := unix.Fsopen(m.Type, unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return -1, fmt.Errorf("the kernel has no file system of that name: %w", errors.ErrUnsupported)
	}
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", m.Source); err != nil {
		return -1, err
	}
	for _, opt := range m.Options {
		key, value, ok := strings.Cut(opt, "=")
		switch {
		case opt == "rw" || opt == "ro":
		case ok:
			err = unix.FsconfigSetString(fs, key, value)
		default:
			err = unix.FsconfigSetFlag(fs, opt)
		}
		if err != nil {
			return -1, fmt.Errorf("option %s: %w", opt, errors.ErrUnsupported)
		}
	}
	if slices.Contains(m.Options, "ro") {
		if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("%w%s", err, said(fs))
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}
