package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/snapshotd/kernel"
)

// mountOn mounts what is described on a directory. If a part fails, none is left.
func mountOn(mounts []mount.Mount, dir string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("only root may mount: %w", errdefs.ErrFailedPrecondition)
	}
	for i, m := range mounts {
		if err := mountOne(m, filepath.Join(dir, filepath.Clean("/"+m.Target))); err != nil {
			for range i {
				err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
			}
			return err
		}
	}
	return nil
}

func mountOne(m mount.Mount, at string) error {
	f, err := attach(m)
	if errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("%v; a program of its own has to mount it: %w", err, errdefs.ErrNotImplemented)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	return nil
}

func attach(m mount.Mount) (*os.File, error) {
	if m.Type != "overlay" {
		return kernel.Attach(m, false)
	}
	o, err := kernel.OverlayOf(m)
	if err != nil {
		return nil, err
	}
	f, err := kernel.New().Overlay(o)
	if err != nil || o.Upper != "" && !slices.Contains(m.Options, "ro") {
		return f, err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		f.Close()
		return nil, fmt.Errorf("read-only: %w", err)
	}
	return f, nil
}
