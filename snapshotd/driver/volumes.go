package driver

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gantryd/gantry/snapshotd/subvolume"
)

// Volumes are the changes that only btrfs knows.
type Volumes interface {
	// MakeVolume makes an empty subvolume of that mode, whatever the umask;
	// CloneVolume makes one that is a writable copy of another.
	MakeVolume(path string, mode fs.FileMode) error
	CloneVolume(from, to string) error

	// FreezeVolume makes a subvolume one that can only be read, or one that
	// can be written again.
	FreezeVolume(path string, readOnly bool) error

	// RemoveVolume removes a subvolume, and those that are in it; a missing
	// one is fine.
	RemoveVolume(ctx context.Context, path string) error
}

var _ Volumes = Files{}

// MakeVolume implements Volumes.
func (Files) MakeVolume(path string, mode fs.FileMode) error {
	if err := in(path, func(dir int, name string) error { return subvolume.Make(dir, name) }); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// CloneVolume implements Volumes.
func (Files) CloneVolume(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	return in(to, func(dir int, name string) error { return subvolume.Clone(dir, name, int(src.Fd())) })
}

// FreezeVolume implements Volumes.
func (Files) FreezeVolume(path string, readOnly bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := subvolume.SetReadOnly(int(f.Fd()), readOnly); err != nil {
		return &os.PathError{Op: "freeze", Path: path, Err: err}
	}
	return nil
}

// RemoveVolume implements Volumes.
func (Files) RemoveVolume(ctx context.Context, path string) error {
	err := in(path, func(dir int, name string) error { return subvolume.Remove(ctx, dir, name) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// in calls fn with the directory that path is in.
func in(path string, fn func(dir int, name string) error) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := fn(int(dir.Fd()), filepath.Base(path)); err != nil {
		return &os.PathError{Op: "subvolume", Path: path, Err: err}
	}
	return nil
}
