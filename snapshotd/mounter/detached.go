package mounter

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// What is made in this file is mounted nowhere: it is reached by its descriptor
// and gone when that is closed.

// bind is a copy of the mount at a directory.
func bind(dir *os.File, w words) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	var recursive uint
	if w.recursive {
		recursive = unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(int(dir.Fd()), "", flags|recursive)
	if err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	f := os.NewFile(uintptr(fd), "bind")
	set := &unix.MountAttr{Attr_set: w.set, Attr_clr: w.clear &^ w.set, Propagation: w.propagation &^ unix.MS_REC}
	if w.set&unix.MOUNT_ATTR__ATIME != 0 {
		set.Attr_clr |= unix.MOUNT_ATTR__ATIME
	}
	if *set == (unix.MountAttr{}) {
		return f, nil
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|recursive, set); errors.Is(err, unix.ENOSYS) {
		f.Close()
		return nil, fmt.Errorf("bind: no mount_setattr in this kernel: %w", errdefs.ErrNotImplemented)
	} else if err != nil {
		f.Close()
		return nil, fmt.Errorf("bind: %w", err)
	}
	return f, nil
}

// A setting is an option of a file system; without a value it is a flag.
type setting struct{ key, value string }

func settings(options []string) []setting {
	var all []setting
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		all = append(all, setting{key, value})
	}
	return all
}

// filesystem is a new mount of a file system.
func filesystem(typ string, all []setting, w words) (*os.File, error) {
	fs, err := unix.Fsopen(typ, unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("no file system %s in this kernel: %w", typ, errdefs.ErrNotImplemented)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", typ, err)
	}
	defer unix.Close(fs)
	if w.readOnly() {
		all = append([]setting{{key: "ro"}}, all...)
	}
	for _, s := range all {
		if s.value == "" {
			err = unix.FsconfigSetFlag(fs, s.key)
		} else {
			err = unix.FsconfigSetString(fs, s.key, s.value)
		}
		if s.key == "lowerdir+" && errors.Is(err, unix.EINVAL) {
			return nil, fmt.Errorf("%s: the kernel takes no descriptors of layers: %w", typ, errdefs.ErrNotImplemented)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: option %s: %w%s", typ, s.key, err, said(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("%s: %w%s", typ, err, said(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(w.set))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", typ, err)
	}
	return os.NewFile(uintptr(fd), typ), nil
}

// said returns what the kernel said about the failure, if anything.
func said(fs int) string {
	var b [512]byte
	n, err := unix.Read(fs, b[:])
	if err != nil || n <= 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(b[:n])) + ")"
}
