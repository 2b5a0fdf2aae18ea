package snapshotd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/changes"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
	"github.com/gantryd/gantry/snapshotd/pack"
)

var errTree = fmt.Errorf("not the mounts of a snapshot of the namespace: %w", errdefs.ErrInvalidArgument)

// Diff implements diff.Service. As for Apply, mounts say which snapshots are
// meant; what is below them is what the records say.
func (a applier) Diff(ctx context.Context, lower, upper []mount.Mount, o diff.DiffOptions) (ocispec.Descriptor, error) {
	if err := cmp.Or(ctx.Err(), label.Check(o.Labels)); err != nil {
		return ocispec.Descriptor{}, err
	}
	format, err := pack.FormatOf(o.MediaType)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	p, err := a.pair(lower, upper)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	release, err := p.hold(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer release()
	select {
	case a.s.diffs <- struct{}{}:
		defer func() { <-a.s.diffs }()
	case <-ctx.Done():
		return ocispec.Descriptor{}, ctx.Err()
	}
	start := time.Now()
	desc, err := p.within(ctx, diffTime, format, o)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	a.s.log.Debug("made a layer", "digest", desc.Digest, "size", desc.Size, "time", time.Since(start))
	return desc, nil
}

// A pair is two snapshots that are compared.
type pair struct {
	applier
	lower *target // nil is an empty tree
	upper target
}

func (a applier) pair(lower, upper []mount.Mount) (p pair, err error) {
	p.applier = a
	if len(lower) > 0 {
		t, err := a.tree(lower)
		if err != nil {
			return p, err
		}
		p.lower = &t
	}
	p.upper, err = a.tree(upper)
	return p, err
}

// tree returns the snapshot that mounts are of. Those of a view are those of its
// parent.
func (a applier) tree(mounts []mount.Mount) (target, error) {
	for name, d := range a.s.drivers {
		f, ok := d.Find(mounts)
		if !ok {
			continue
		}
		t, err := a.claim(name, f)
		if errors.Is(err, errMounts) {
			err = errTree
		}
		if err != nil {
			return t, fmt.Errorf("mounts %.300q: %w", fmt.Sprint(mounts), err)
		}
		return t, nil
	}
	if name, f, ok := a.s.described(a.scope.Name, mounts); ok {
		return a.claim(name, f)
	}
	return target{}, fmt.Errorf("mounts %.300q: %w", fmt.Sprint(mounts), errTree)
}

// hold keeps everybody else from changing what can be changed, in the order of
// ids, so that two who hold the same do not wait for each other.
func (p pair) hold(ctx context.Context) (release func(), err error) {
	var ids []uint64
	for _, t := range []*target{p.lower, &p.upper} {
		if t != nil && t.Kind == snapshot.Active {
			ids = append(ids, t.ID)
		}
	}
	slices.Sort(ids)
	var held []func()
	release = func() {
		for _, r := range held {
			r()
		}
	}
	for _, id := range slices.Compact(ids) {
		r, err := p.s.hold(ctx, id)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, r)
	}
	return release, nil
}

// diffTime is how long a layer may take to be made.
const diffTime = 2 * time.Hour

// within is diff with a limit: [errdefs.ErrResourceExhausted] where that is not
// enough.
func (p pair) within(ctx context.Context, limit time.Duration, format pack.Format, o diff.DiffOptions) (ocispec.Descriptor, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	desc, err := p.diff(limited, format, o)
	if err != nil && ctx.Err() == nil && errors.Is(limited.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("the layer was not made in %v: %v: %w", limit, err, errdefs.ErrResourceExhausted)
	}
	return desc, err
}

// diff writes the layer into the content store.
func (p pair) diff(ctx context.Context, format pack.Format, o diff.DiffOptions) (ocispec.Descriptor, error) {
	blob, err := newIngest(ctx, p.s.needs.Content.In(p.scope), o.Ref)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() {
		if err := blob.close(); err != nil {
			p.s.log.Warn("a layer that came to nothing is still in the content store", "ref", blob.ref, "err", err)
		}
	}()
	diffID, err := p.write(ctx, blob, format, o.SourceDateEpoch)
	if err == nil {
		err = p.stillThere()
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if !format.Compressed() {
		diffID = ""
	}
	info, err := blob.commit(o.Labels, diffID)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: format.MediaType, Digest: info.Digest, Size: info.Size}, nil
}

// write writes the layer, out of an upper directory if that tells the difference.
func (p pair) write(ctx context.Context, blob *ingest, format pack.Format, latest *time.Time) (digest.Digest, error) {
	var trees changes.Trees
	if p.lower != nil {
		f, err := p.lower.d.Tree(ctx, p.lower.Snapshot)
		if err != nil {
			return "", gone(err)
		}
		defer f.Close()
		trees.Lower = f
	}
	if f, err := p.upperDir(); err != nil {
		return "", gone(err)
	} else if f != nil {
		defer f.Close()
		d, err := pack.Write(ctx, blob, format, changes.Trees{Lower: trees.Lower, Upper: f, Overlay: kernel.OverlayAttrs()}, latest)
		if !errors.Is(err, changes.ErrUnclear) {
			return d, err
		}
	}
	f, err := p.upper.d.Tree(ctx, p.upper.Snapshot)
	if err != nil {
		return "", gone(err)
	}
	defer f.Close()
	trees.Upper = f
	return pack.Write(ctx, blob, format, trees, latest)
}

// upperDir opens the directory that has all that differs, if there is one: that
// of a snapshot whose parents are the lower tree.
func (p pair) upperDir() (*os.File, error) {
	layered, ok := p.upper.d.(driver.Layered)
	if !ok || p.lower == nil || p.lower.d != p.upper.d {
		return nil, nil
	}
	below := append([]driver.Ref{p.lower.Ref}, p.lower.Parents...)
	if !slices.Equal(below, p.upper.Parents) {
		return nil, nil
	}
	f, err := layered.Upper(p.upper.Snapshot)
	if errors.Is(err, errdefs.ErrNotImplemented) {
		return nil, nil
	}
	return f, err
}

// stillThere makes sure that nobody removed what was read: a directory that is
// being removed looks like an empty one.
func (p pair) stillThere() error {
	return p.s.db.View(func(tx *kv.Tx) error {
		_, err := tx.Get(dirKey(p.upper.ID))
		if err == nil && p.lower != nil {
			_, err = tx.Get(dirKey(p.lower.ID))
		}
		if errors.Is(err, errdefs.ErrNotFound) {
			return errRemoved
		}
		return err
	})
}

var errRemoved = fmt.Errorf("a snapshot was removed while it was read: %w", errdefs.ErrNotFound)

// gone is errRemoved where a tree is missing.
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return errRemoved
	}
	return err
}
