package mounter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/snapshotd/loop"
)

// kernel is every way this package changes what outlives it, but for the
// records, and no other. It is here so that a test can stop the process between
// any two changes.
type kernel interface {
	// Mkdir makes a directory for mounts; one that is there is fine.
	Mkdir(path string) error

	// Attach mounts m, which is mounted nowhere, at a directory.
	Attach(m *os.File, path string) error

	// Link makes a link to a loop device, and then Keep has it stay.
	Link(device, path string) error
	Keep(device *os.File) error

	// MakeDir and MakeImage make what is not there; what is there is fine if it
	// is of that kind.
	MakeDir(parent *os.File, name string, d activation.Dir) error
	MakeImage(ctx context.Context, parent *os.File, name string, i activation.Image) error

	// Unmount takes a mount away, Free ends the loop device that was attached
	// with a tag, and Remove removes a link or an empty directory. What is not
	// there is fine.
	Unmount(path string) error
	Free(device, tag string) error
	Remove(path string) error
}

// linux is the real kernel.
type linux struct {
	freeMin int64 // bytes of free disk that images leave alone
}

func (linux) Mkdir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (linux) Attach(m *os.File, path string) error {
	at, err := openDir(path)
	if err != nil {
		return err
	}
	defer at.Close()
	if err := unix.MoveMount(int(m.Fd()), "", int(at.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount at %s: %w", path, err)
	}
	return nil
}

func (linux) Link(device, path string) error { return os.Symlink(device, path) }

func (linux) Keep(device *os.File) error { return loop.Keep(device) }

func (linux) MakeDir(parent *os.File, name string, d activation.Dir) error {
	return makeDir(parent, name, d)
}

func (l linux) MakeImage(ctx context.Context, parent *os.File, name string, i activation.Image) error {
	return makeImage(ctx, parent, name, i, l.freeMin)
}

func (linux) Unmount(path string) error {
	err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // nothing is mounted there
	}
	if err != nil {
		return &os.PathError{Op: "unmount", Path: path, Err: err}
	}
	return nil
}

func (linux) Free(device, tag string) error { return loop.Free(device, tag) }

func (linux) Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
