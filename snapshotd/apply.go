package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/arrival"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/layer"
)

// layers extracts layers into snapshots.
type layers struct{ s *Store }

var _ diff.Services = layers{}

// In implements diff.Services.
func (l layers) In(scope namespace.Scope) diff.Service { return applier{s: l.s, scope: scope} }

type applier struct {
	s     *Store
	scope namespace.Scope
}

// Apply implements diff.Service. The mounts say which snapshot is meant, and
// must be those of an active one of the namespace: this daemon never mounts
// what a caller describes, so that whoever may have layers applied cannot have
// them applied to anything else of the host.
func (a applier) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, o diff.ApplyOptions) (ocispec.Descriptor, error) {
	if err := ctx.Err(); err != nil {
		return ocispec.Descriptor{}, err
	}
	t, err := a.target(mounts)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	release, err := a.s.hold(ctx, t.ID)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer release()
	// Whoever held it before may have committed or removed it.
	held := t.ID
	if t, err = a.target(mounts); err == nil && t.ID != held {
		err = fmt.Errorf("mounts %.300q: %w", fmt.Sprint(mounts), errMounts)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	select {
	case a.s.applies <- struct{}{}:
		defer func() { <-a.s.applies }()
	case <-ctx.Done():
		return ocispec.Descriptor{}, ctx.Err()
	}
	start := time.Now()
	res, err := a.extract(ctx, desc, t, o)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	a.s.log.Debug("applied a layer", "digest", desc.Digest, "entries", res.Entries, "size", res.Size, "time", time.Since(start))
	if res.Dropped > 0 {
		a.s.log.Info("left out extended attributes of a layer", "digest", desc.Digest, "count", res.Dropped)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: res.DiffID, Size: res.Size}, nil
}

// A target is a snapshot, found by its mounts.
type target struct {
	d driver.Driver
	driver.Snapshot
	alone bool
}

var errMounts = fmt.Errorf("not the mounts of an active snapshot of the namespace: %w", errdefs.ErrInvalidArgument)

func (a applier) target(mounts []mount.Mount) (target, error) {
	for name, d := range a.s.drivers {
		f, ok := d.Find(mounts)
		if !ok || !f.Write {
			continue
		}
		t, err := a.claim(name, f)
		if err == nil && t.Kind != snapshot.Active {
			err = errMounts
		}
		if err != nil {
			return t, fmt.Errorf("mounts %.300q: %w", fmt.Sprint(mounts), err)
		}
		return t, nil
	}
	if name, f, ok := a.s.described(a.scope.Name, mounts); ok && f.Write {
		return a.claim(name, f)
	}
	return target{}, fmt.Errorf("mounts %.300q: %w", fmt.Sprint(mounts), errMounts)
}

// claim looks whether what was found in mounts is true, and the namespace's.
func (a applier) claim(snapshotter string, f driver.Found) (target, error) {
	d, err := a.s.driver(snapshotter)
	if err != nil {
		return target{}, err
	}
	t := target{d: d}
	err = a.s.db.View(func(tx *kv.Tx) error {
		var o owner
		if err := tx.GetJSON(dirKey(f.ID), &o); errors.Is(err, errdefs.ErrNotFound) {
			return errMounts
		} else if err != nil {
			return err
		}
		h := o.shelf()
		r, err := h.get(tx, o.Name)
		if err != nil {
			return err
		}
		if o.Snapshotter != snapshotter || o.Namespace != a.scope.Name {
			return errMounts
		}
		parents, err := h.chain(tx, r.Parent)
		t.Snapshot = h.known(o.Name, r, parents)
		t.alone = f.Alone && r.Parent == "" && d.Traits().Rebase
		return err
	})
	return t, err
}

func (a applier) extract(ctx context.Context, desc ocispec.Descriptor, t target, o diff.ApplyOptions) (layer.Result, error) {
	into, done, err := t.d.Extract(ctx, t.Snapshot, t.alone)
	if err != nil {
		return layer.Result{}, err
	}
	into.FreeMin = a.s.cfg.freeMin()
	res, err := layer.Apply(ctx, desc, func(ctx context.Context) (io.ReadCloser, error) { return a.open(ctx, desc) }, into)
	if err == nil && o.SyncFS {
		err = a.s.disk.SyncFS(into.Own.Name())
	}
	a.s.noteLayer(t.ID, desc, res.DiffID) // also if half of it is there
	return res, errors.Join(err, done())
}

// open reads a blob of the namespace.
func (a applier) open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	blob := arrival.Blob{Store: a.s.needs.Content.In(namespace.Scope{Name: a.scope.Name}), Digest: desc.Digest}
	return blob.Open(ctx)
}
