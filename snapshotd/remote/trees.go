package remote

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/idmap"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
	"github.com/gantryd/gantry/snapshotd/layer"
	"github.com/gantryd/gantry/snapshotd/tree"
)

// The trees are where the snapshotter says that they are: what is mounted here is
// what it describes, and only where nobody else sees it.

// single is the mount of a snapshot that is worked on here.
func (d *Driver) single(ctx context.Context, s driver.Snapshot) (mount.Mount, error) {
	mounts, err := d.Mounts(ctx, s)
	if err != nil {
		return mount.Mount{}, err
	}
	if len(mounts) != 1 || mounts[0].Target != "" {
		return mount.Mount{}, fmt.Errorf("snapshotter %s: work on %d mounts that belong together: %w", d.name, len(mounts), errdefs.ErrNotImplemented)
	}
	// Whoever's ids it is mounted with, here it is read and written as on disk.
	m := mounts[0]
	_, m.Options, err = idmap.Take(m.Options)
	if err != nil {
		return mount.Mount{}, fmt.Errorf("snapshotter %s: %w", d.name, err)
	}
	return m, nil
}

// overlayOf reads an overlay. One whose directories are not all plain absolute
// paths is not understood: of "a::b", where only the data of b is used, the empty
// one between would be the root of the host, and all of it part of the tree.
func (d *Driver) overlayOf(m mount.Mount) (kernel.Overlay, error) {
	o, err := kernel.OverlayOf(m)
	if err != nil {
		return o, fmt.Errorf("snapshotter %s: %w", d.name, err)
	}
	dirs := o.Lower
	if o.Upper != "" || len(dirs) == 0 {
		dirs = append([]string{o.Upper}, dirs...)
	}
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) || strings.ContainsRune(dir, '\\') {
			return o, fmt.Errorf("snapshotter %s: an overlay of %.300q: %w", d.name, dirs, errdefs.ErrNotImplemented)
		}
	}
	return o, nil
}

// Extract implements driver.Driver. Into an overlay it goes in overlayfs' form,
// also where the layers below are to come later; elsewhere it goes through what
// is mounted.
func (d *Driver) Extract(ctx context.Context, s driver.Snapshot, _ bool) (layer.Target, func() error, error) {
	m, err := d.single(ctx, s)
	if err != nil {
		return layer.Target{}, nil, err
	}
	if m.Type != "overlay" {
		own, err := kernel.Attach(m, false)
		if err != nil {
			return layer.Target{}, nil, d.kind(err)
		}
		return layer.Target{Own: own, Rootless: kernel.InUserNamespace()}, own.Close, nil
	}
	o, err := d.overlayOf(m)
	if err != nil {
		return layer.Target{}, nil, err
	}
	if o.Upper == "" {
		return layer.Target{}, nil, fmt.Errorf("snapshotter %s: an overlay without upper directory cannot be written: %w", d.name, errdefs.ErrFailedPrecondition)
	}
	own, err := open(o.Upper)
	if err != nil {
		return layer.Target{}, nil, err
	}
	t := layer.Target{Own: own, Overlay: true, Attr: "trusted.overlay.", Rootless: kernel.InUserNamespace()}
	if slices.Contains(o.Options, "userxattr") {
		t.Attr = "user.overlay."
	}
	if len(o.Lower) > 0 {
		t.Root = func() (*os.File, error) { return d.kernel.Overlay(o) }
	}
	return t, own.Close, nil
}

// Tree implements driver.Driver, but for committed snapshots, which have no
// mounts.
func (d *Driver) Tree(ctx context.Context, s driver.Snapshot) (*os.File, error) {
	if s.Kind == snapshot.Committed {
		return nil, fmt.Errorf("snapshotter %s: the files of a committed snapshot, without a view: %w", d.name, errdefs.ErrNotImplemented)
	}
	m, err := d.single(ctx, s)
	if err != nil {
		return nil, err
	}
	if m.Type != "overlay" {
		f, err := kernel.Attach(m, true)
		return f, d.kind(err)
	}
	// Nothing is written, and a container may have the upper directory in use:
	// it is shown as a layer like those below.
	o, err := d.overlayOf(m)
	if err != nil {
		return nil, err
	}
	if o.Upper != "" {
		o.Lower = append([]string{o.Upper}, o.Lower...)
		o.Upper, o.Work = "", ""
	}
	if len(o.Lower) == 1 {
		return open(o.Lower[0])
	}
	return d.kernel.Overlay(o)
}

// Sync makes durable what was written to an active snapshot, where that can be
// told from its mounts.
func (d *Driver) Sync(ctx context.Context, s driver.Snapshot) error {
	m, err := d.single(ctx, s)
	switch {
	case errors.Is(err, errdefs.ErrNotFound), errors.Is(err, errdefs.ErrNotImplemented):
		return nil
	case err != nil:
		return err
	}
	dir := m.Source
	switch m.Type {
	case "overlay":
		o, err := kernel.OverlayOf(m)
		if err != nil {
			return err
		}
		dir = o.Upper
	case "bind":
	default:
		return nil
	}
	f, err := open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	// A descriptor for paths only cannot be synced. Nothing but a directory is
	// opened: a pipe would wait, and a device does what it does.
	fd, err := tree.Reopen(int(f.Fd()))
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}

// kind gives the kind to what cannot be mounted here.
func (d *Driver) kind(err error) error {
	if errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("snapshotter %s: %v: %w", d.name, err, errdefs.ErrNotImplemented)
	}
	return err
}

// open opens a directory, for paths only.
func open(dir string) (*os.File, error) {
	return os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}
