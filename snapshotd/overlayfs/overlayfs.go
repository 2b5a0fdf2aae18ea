// Package overlayfs keeps each snapshot in a directory, which overlayfs stacks on
// those of its parents.
//
//	<root>/snapshots/<id>/fs     the files of one snapshot, 0755
//	<root>/snapshots/<id>/work   scratch of overlayfs, if it is active
//	<root>/snapshots/<id>/boot   of one that was given out as volatile, in which boot
//	<root>/probe/                to see whether overlays can be made
//
// A snapshot with the ids of a container has them mapped by whoever mounts it,
// where the kernel can; what is written to it has those of the host.
//
// A view of something has no directory. A layer that was extracted without its
// parents (a rebase is to come) leaves attributes on directories, see package
// layer, which the commit takes away.
package overlayfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/idmap"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
	"github.com/gantryd/gantry/snapshotd/layer"
	"github.com/gantryd/gantry/snapshotd/rebase"
	"github.com/gantryd/gantry/snapshotd/tree"
)

// A Driver is the trees below one directory.
type Driver struct {
	dirs    driver.Dirs
	kernel  kernel.Kernel
	cfg     Config
	options []string // of overlays
	mapsIDs bool     // the kernel shows layers with the ids of a container

	// rootless says that this process is root of a user namespace only. It has
	// no attributes then that no layer can set, and so no rebase.
	rootless bool

	handing sync.Mutex // guards the files that say in which boot; a leaf
}

var (
	_ driver.Driver  = (*Driver)(nil)
	_ driver.Layered = (*Driver)(nil)
	_ driver.Batcher = (*Driver)(nil)
)

// Open opens or makes the trees below root, which must be a clean absolute path
// without a comma, colon, backslash or quote. An error says why there can be no
// overlays here.
func Open(root string, cfg Config, env driver.Env) (*Driver, error) {
	d := &Driver{
		dirs:    driver.Dirs{Dir: filepath.Join(root, "snapshots"), Disk: env.Disk, Log: env.Log},
		kernel:  env.Kernel,
		cfg:     cfg,
		options: cfg.options(),

		rootless: kernel.InUserNamespace(),
	}
	if err := d.dirs.Own(root); err != nil {
		return nil, err
	}
	return d, d.probe(root)
}

// probe finds out whether overlays can be made on the file system of root, and
// whether with other ids.
func (d *Driver) probe(root string) error {
	const name = "probe"
	parts := kernel.Overlay{Dir: root, Upper: name + "/upper", Work: name + "/work", Lower: []string{name + "/lower"}, Options: d.options}
	for _, p := range []string{name, parts.Upper, parts.Work, parts.Lower[0]} {
		if err := d.dirs.Disk.Mkdir(filepath.Join(root, p), 0o700); err != nil {
			return err
		}
	}
	if d.cfg.Volatile {
		parts.Options = append(slices.Clip(parts.Options), volatileOption)
	}
	// The mark of the one before, see volatile.go.
	if err := d.unmark(context.Background(), filepath.Join(root, parts.Work)); err != nil {
		return err
	}
	if _, err := d.rootOf(parts); err != nil {
		return err
	}
	parts.IDs = idmap.Map{UIDs: []idmap.Range{{Host: probeID, Size: 1}}, GIDs: []idmap.Range{{Host: probeID, Size: 1}}}
	// Without the upper directory: that is shown as it is.
	parts.Upper, parts.Work, parts.Options = "", "", d.options
	parts.Lower = append(parts.Lower, name+"/upper")
	st, err := d.rootOf(parts)
	if err == nil && (st.Uid != probeID || st.Gid != probeID) {
		err = fmt.Errorf("the kernel shows user %d: %w", st.Uid, errors.ErrUnsupported)
	}
	if err != nil {
		d.dirs.Log.Info("overlays cannot have the ids of containers here", "err", err)
	}
	d.mapsIDs = err == nil
	return nil
}

// probeID is somebody whom the probe's directories are not owned by.
const probeID = 1

// rootOf makes an overlay and looks at it.
func (d *Driver) rootOf(o kernel.Overlay) (st unix.Stat_t, err error) {
	f, err := d.kernel.Overlay(o)
	if err != nil {
		return st, err
	}
	defer f.Close()
	return st, unix.Fstat(int(f.Fd()), &st)
}

func (d *Driver) fs(id uint64) string   { return d.dirs.Path(id, "fs") }
func (d *Driver) work(id uint64) string { return d.dirs.Path(id, "work") }

// Traits implements driver.Driver.
func (d *Driver) Traits() driver.Traits {
	return driver.Traits{
		Traits: snapshot.Traits{Rebase: !d.rootless, RemapIDs: d.mapsIDs},
		Beside: true, NoChown: !d.cfg.SlowChown,
		Kept: []string{bootName},
	}
}

// Create implements driver.Driver. The tree looks like its parent's.
func (d *Driver) Create(_ context.Context, s driver.Snapshot) error {
	return d.dirs.MakeUpper(s, d.owner)
}

// owner is whom the upper directory of a snapshot belongs to: the container's
// root, or whoever its parent belongs to. Without parents there is no overlay:
// the directory itself is shown with the ids, and so is root's.
func (d *Driver) owner(s driver.Snapshot) (uid, gid uint32, err error) {
	ids, err := d.ids(s)
	if err != nil {
		return 0, 0, err
	}
	if !ids.IsZero() {
		uid, gid = ids.Root()
		return uid, gid, nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(d.fs(s.Parents[0].ID), &st); err != nil {
		return 0, 0, fmt.Errorf("parent: %w", err)
	}
	return st.Uid, st.Gid, nil
}

// Mounts implements driver.Driver.
func (d *Driver) Mounts(ctx context.Context, s driver.Snapshot) ([]mount.Mount, error) {
	if s.Kind == snapshot.Active && len(s.Parents) > 0 {
		ready := d.resume
		if d.cfg.Volatile {
			ready = d.handOut
		}
		if err := ready(ctx, s.Ref); err != nil {
			return nil, err
		}
	}
	return d.mounts(s)
}

// overlay is what is stacked for a snapshot, or without it for its parents.
func (d *Driver) overlay(parents []driver.Ref) kernel.Overlay {
	o := kernel.Overlay{Dir: d.dirs.Dir, Options: d.options}
	for _, p := range parents {
		o.Lower = append(o.Lower, d.dirs.Rel(p.ID, "fs"))
	}
	return o
}

// Extract implements driver.Driver.
func (d *Driver) Extract(ctx context.Context, s driver.Snapshot, alone bool) (layer.Target, func() error, error) {
	if err := d.resume(ctx, s.Ref); err != nil {
		return layer.Target{}, nil, err
	}
	own, err := d.dirs.Open(s.ID, "fs")
	if err != nil {
		return layer.Target{}, nil, err
	}
	t := layer.Target{Own: own, Attr: kernel.OverlayAttrs(), Overlay: alone || len(s.Parents) > 0, Detached: alone, Rootless: d.rootless}
	if len(s.Parents) > 0 {
		o := d.overlay(s.Parents)
		o.Upper, o.Work = d.dirs.Rel(s.ID, "fs"), d.dirs.Rel(s.ID, "work")
		t.Root = func() (*os.File, error) { return d.kernel.Overlay(o) }
	}
	return t, own.Close, nil
}

// Tree implements driver.Driver. What an active snapshot has is shown as a layer
// like those below.
func (d *Driver) Tree(_ context.Context, s driver.Snapshot) (*os.File, error) {
	layers := s.Parents
	if s.Kind != snapshot.View || len(s.Parents) == 0 {
		layers = append([]driver.Ref{s.Ref}, s.Parents...)
	}
	return d.stack(layers)
}

func (d *Driver) stack(layers []driver.Ref) (*os.File, error) {
	if len(layers) == 1 {
		return d.dirs.Open(layers[0].ID, "fs")
	}
	return d.kernel.Overlay(d.overlay(layers))
}

// Upper implements driver.Layered.
func (d *Driver) Upper(s driver.Snapshot) (*os.File, error) { return d.dirs.Open(s.ID, "fs") }

// Commit implements driver.Driver.
func (d *Driver) Commit(ctx context.Context, s, as driver.Snapshot) (snapshot.Usage, error) {
	if err := d.Settle(ctx, s, as); err != nil {
		return snapshot.Usage{}, err
	}
	if err := d.dirs.Disk.SyncFS(d.dirs.Path(s.ID)); err != nil {
		return snapshot.Usage{}, err
	}
	return d.Usage(ctx, as)
}

// Settle implements driver.Batcher.
func (d *Driver) Settle(ctx context.Context, s, as driver.Snapshot) error {
	// What is missing of it since a crash would be missing for good.
	if err := d.resume(ctx, s.Ref); err != nil {
		return err
	}
	if len(s.Parents) > 0 {
		return nil
	}
	return d.settle(ctx, s.ID, as.Parents)
}

// Sync implements driver.Batcher.
func (d *Driver) Sync() error { return d.dirs.Disk.SyncFS(d.dirs.Dir) }

// settle puts what was filled alone on its parents.
func (d *Driver) settle(ctx context.Context, id uint64, parents []driver.Ref) error {
	own, err := d.dirs.Open(id, "fs")
	if err != nil {
		return err
	}
	defer own.Close()
	if len(parents) == 0 {
		return rebase.Onto(ctx, own, nil)
	}
	return rebase.Onto(ctx, own, func() (*os.File, error) { return d.stack(parents) })
}

// Usage implements driver.Driver.
func (d *Driver) Usage(ctx context.Context, s driver.Snapshot) (snapshot.Usage, error) {
	dir, err := d.dirs.Open(s.ID, "fs")
	if err != nil {
		return snapshot.Usage{}, err
	}
	defer dir.Close()
	u, err := tree.Measure(ctx, int(dir.Fd()))
	return snapshot.Usage(u), err
}

// Remove implements driver.Driver.
func (d *Driver) Remove(ctx context.Context, r driver.Ref) error { return d.dirs.Remove(ctx, r.ID) }

// IDs implements driver.Driver.
func (d *Driver) IDs(context.Context) ([]uint64, error) { return d.dirs.IDs() }

// Has implements driver.Driver.
func (d *Driver) Has(_ context.Context, s driver.Snapshot) bool {
	return d.dirs.Has(s.ID, "fs") && (s.Kind != snapshot.Active || d.dirs.Has(s.ID, "work"))
}
