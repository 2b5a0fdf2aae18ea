// Package btrfs keeps each snapshot in a subvolume, which is a clone of its
// parent's.
//
//	<root>/snapshots/<id>/fs    the subvolume
//	<root>/snapshots/<id>/new   the same before it is whole
//
// A view of something has no subvolume. That of a committed snapshot can only be
// read. One that a container has made within its own is removed with it, and is
// an empty directory in what is made from it.
//
// Clients mount a directory, as with the other snapshotters, and no device: that
// of a file system on several of them, or behind a volume manager, has no one
// name, and a mount of it would reach every subvolume.
package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/layer"
	"github.com/gantryd/gantry/snapshotd/subvolume"
)

// A Driver is the subvolumes below one directory.
type Driver struct{ driver.Whole }

var (
	_ driver.Driver  = (*Driver)(nil)
	_ driver.Freezer = (*Driver)(nil)
)

// Open opens or makes the subvolumes below root, which must be a clean absolute
// path. An error says why there can be none here.
func Open(root string, env driver.Env) (*Driver, error) {
	if err := driver.OwnDir(root); err != nil {
		return nil, err
	}
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	switch is, err := subvolume.There(int(dir.Fd())); {
	case err != nil:
		return nil, err
	case !is:
		return nil, fmt.Errorf("%s is not on a btrfs file system: %w", root, errdefs.ErrNotImplemented)
	}
	d := &Driver{driver.Whole{Dirs: driver.Dirs{Dir: filepath.Join(root, "snapshots"), Disk: env.Disk, Log: env.Log}}}
	return d, d.Dirs.Own(root)
}

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, s driver.Snapshot) error {
	if d.Dirs.Has(s.ID, driver.WholeName) {
		return nil
	}
	disk, unfinished := d.Dirs.Disk, d.Dirs.Path(s.ID, "new")
	if err := disk.Mkdir(d.Dirs.Path(s.ID), 0o700); err != nil {
		return err
	}
	if err := disk.RemoveVolume(ctx, unfinished); err != nil {
		return err
	}
	if err := d.make(s, unfinished); err != nil {
		return err
	}
	return disk.Rename(unfinished, d.Path(s.ID))
}

func (d *Driver) make(s driver.Snapshot, path string) error {
	disk := d.Dirs.Disk
	if len(s.Parents) == 0 {
		return disk.MakeVolume(path, 0o755)
	}
	// The records may be those of a backup that had it active, and thawed it.
	if err := d.freeze(s.Parents[0].ID, true); err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	return disk.CloneVolume(d.Path(s.Parents[0].ID), path)
}

// freeze makes a subvolume one that can only be read, or that can be written.
func (d *Driver) freeze(id uint64, readOnly bool) error {
	dir, err := d.Dirs.Open(id, driver.WholeName)
	if err != nil {
		return err
	}
	defer dir.Close()
	if is, err := subvolume.ReadOnly(int(dir.Fd())); is == readOnly || err != nil {
		return err
	}
	return d.Dirs.Disk.FreezeVolume(d.Path(id), readOnly)
}

// Thaw implements driver.Freezer.
func (d *Driver) Thaw(s driver.Snapshot) error { return d.freeze(s.ID, false) }

// Extract implements driver.Driver.
func (d *Driver) Extract(ctx context.Context, s driver.Snapshot, alone bool) (layer.Target, func() error, error) {
	if err := d.freeze(s.ID, false); err != nil {
		return layer.Target{}, nil, err
	}
	return d.Whole.Extract(ctx, s, alone)
}

// Commit implements driver.Driver. Whoever still has the active snapshot mounted
// cannot change the committed one.
func (d *Driver) Commit(ctx context.Context, s, as driver.Snapshot) (snapshot.Usage, error) {
	if err := d.freeze(s.ID, true); err != nil {
		return snapshot.Usage{}, err
	}
	err := d.Dirs.Disk.SyncFS(d.Path(s.ID))
	var u snapshot.Usage
	if err == nil {
		u, err = d.measure(ctx, as.ID, len(s.Parents) > 0)
	}
	if err != nil {
		return snapshot.Usage{}, errors.Join(err, d.freeze(s.ID, false))
	}
	return u, nil
}

// Usage implements driver.Driver. It is what was written since the subvolume was
// cloned. What has not left the memory has no place yet, so it is written first.
func (d *Driver) Usage(ctx context.Context, s driver.Snapshot) (snapshot.Usage, error) {
	if s.Kind == snapshot.Active {
		if err := d.Dirs.Disk.SyncFS(d.Path(s.ID)); err != nil {
			return snapshot.Usage{}, err
		}
	}
	return d.measure(ctx, s.ID, len(s.Parents) > 0)
}

func (d *Driver) measure(ctx context.Context, id uint64, cloned bool) (snapshot.Usage, error) {
	dir, err := d.Dirs.Open(id, driver.WholeName)
	if err != nil {
		return snapshot.Usage{}, err
	}
	defer dir.Close()
	u, err := subvolume.Measure(ctx, int(dir.Fd()), cloned)
	return snapshot.Usage(u), err
}

// Remove implements driver.Driver.
func (d *Driver) Remove(ctx context.Context, r driver.Ref) error {
	for _, name := range []string{driver.WholeName, "new"} {
		if err := d.Dirs.Disk.RemoveVolume(ctx, d.Dirs.Path(r.ID, name)); err != nil {
			return err
		}
	}
	return d.Dirs.Remove(ctx, r.ID)
}
