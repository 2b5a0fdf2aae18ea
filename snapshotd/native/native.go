// Package native keeps each snapshot in a directory that has the whole tree: a
// copy of its parent's, and what was done to it. It needs nothing of the file
// system; where that can share the contents of files (XFS, btrfs), a copy costs
// only the names.
//
//	<root>/snapshots/<id>/fs      the tree
//	<root>/snapshots/<id>/new     the same before it is whole
//	<root>/snapshots/<id>/links   see tree.Copying, while it is copied
//
// A view of something has no directory.
package native

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/tree"
)

// A Driver is the trees below one directory.
type Driver struct {
	driver.Whole
	freeMin int64
}

var _ driver.Driver = (*Driver)(nil)

// Open opens or makes the trees below root, which must be a clean absolute path.
func Open(root string, env driver.Env) (*Driver, error) {
	d := &Driver{
		Whole:   driver.Whole{Dirs: driver.Dirs{Dir: filepath.Join(root, "snapshots"), Disk: env.Disk, Log: env.Log}},
		freeMin: env.FreeMin,
	}
	return d, d.Dirs.Own(root)
}

// Create implements driver.Driver. A tree has its place when it is whole, and not
// before: what a crash leaves of a copy is thrown away and made again.
func (d *Driver) Create(ctx context.Context, s driver.Snapshot) error {
	if d.Dirs.Has(s.ID, driver.WholeName) {
		return nil
	}
	disk, unfinished, links := d.Dirs.Disk, d.Dirs.Path(s.ID, "new"), d.Dirs.Path(s.ID, "links")
	if err := disk.Mkdir(d.Dirs.Path(s.ID), 0o700); err != nil {
		return err
	}
	if err := errors.Join(disk.RemoveTree(ctx, unfinished), disk.RemoveTree(ctx, links)); err != nil {
		return err
	}
	if err := disk.Mkdir(unfinished, 0o755); err != nil {
		return err
	}
	if len(s.Parents) > 0 {
		if err := disk.Mkdir(links, 0o700); err != nil {
			return err
		}
		shared, err := d.copy(ctx, s)
		if err != nil {
			return err
		}
		if err := disk.RemoveTree(ctx, links); err != nil {
			return err
		}
		// After a power failure, names may be there whose contents are not.
		// Those would be taken for the parent's.
		if !shared {
			if err := disk.SyncFS(unfinished); err != nil {
				return err
			}
		}
	}
	return disk.Rename(unfinished, d.Path(s.ID))
}

// copy copies the tree of the parent.
func (d *Driver) copy(ctx context.Context, s driver.Snapshot) (shared bool, err error) {
	var files [3]*os.File
	for i, at := range []struct {
		id   uint64
		name string
	}{{s.Parents[0].ID, driver.WholeName}, {s.ID, "new"}, {s.ID, "links"}} {
		if files[i], err = d.Dirs.Open(at.id, at.name); err != nil {
			return false, err
		}
		defer files[i].Close()
	}
	from, to, links := int(files[0].Fd()), int(files[1].Fd()), int(files[2].Fd())
	return tree.Copy(ctx, from, to, tree.Copying{Links: links, FreeMin: d.freeMin})
}

// Commit implements driver.Driver.
func (d *Driver) Commit(ctx context.Context, _, as driver.Snapshot) (snapshot.Usage, error) {
	if err := d.Dirs.Disk.SyncFS(d.Path(as.ID)); err != nil {
		return snapshot.Usage{}, err
	}
	return d.Usage(ctx, as)
}

// Usage implements driver.Driver. It is that of the whole tree, also where parts
// of it are shared with the parent's.
func (d *Driver) Usage(ctx context.Context, s driver.Snapshot) (snapshot.Usage, error) {
	dir, err := d.Dirs.Open(s.ID, driver.WholeName)
	if err != nil {
		return snapshot.Usage{}, err
	}
	defer dir.Close()
	u, err := tree.Measure(ctx, int(dir.Fd()))
	return snapshot.Usage(u), err
}

// Remove implements driver.Driver.
func (d *Driver) Remove(ctx context.Context, r driver.Ref) error { return d.Dirs.Remove(ctx, r.ID) }
