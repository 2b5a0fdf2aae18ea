package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/unpack"
)

// An inSeries unpacks one layer after the other, as clients of containerd do. It
// is for external snapshotters, which may have a layer without being given it,
// and whose every step is recorded.
type inSeries struct{ outside }

var _ unpack.Service = inSeries{}

// Unpack implements unpack.Service.
func (u inSeries) Unpack(ctx context.Context, layers []unpack.Layer) iter.Seq2[unpack.Progress, error] {
	return func(yield func(unpack.Progress, error) bool) {
		names, err := unpack.Names(layers)
		parent := ""
		for i := 0; i < len(names) && err == nil; i++ {
			p := unpack.Progress{Layer: i, Name: names[i], Phase: unpack.Waiting, Total: layers[i].Size}
			if !yield(p, nil) {
				return
			}
			if p.Phase, err = u.layer(ctx, layers[i], parent, names[i]); err != nil {
				err = fmt.Errorf("layer %d, %s: %w", i, layers[i].Digest, err)
			} else if p.Done = p.Total; !yield(p, nil) {
				return
			}
			parent = names[i]
		}
		if err != nil {
			yield(unpack.Progress{}, err)
		}
	}
}

// layer makes the snapshot of one layer, unless it is there.
func (u inSeries) layer(ctx context.Context, l unpack.Layer, parent, name string) (unpack.Phase, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	key := "unpack " + strconv.FormatUint(u.s.last.Add(1), 10) + " " + name
	labels := map[string]string{snapshot.LabelTarget: name}
	maps.Copy(labels, l.Labels)
	mounts, err := u.Prepare(ctx, key, parent, snapshot.Options{Labels: labels})
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return unpack.Existed, nil
	}
	if err != nil {
		return "", err
	}
	if err = u.fill(ctx, l, mounts); err == nil {
		err = u.Commit(ctx, name, key, snapshot.Options{Labels: l.Labels})
	}
	if err == nil {
		return unpack.Committed, nil
	}
	gone, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearTime)
	defer cancel()
	if e := u.Remove(gone, key); e != nil && !errors.Is(e, errdefs.ErrNotFound) {
		return "", errors.Join(err, e)
	}
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return unpack.Existed, nil // somebody else was faster
	}
	return "", err
}

func (u inSeries) fill(ctx context.Context, l unpack.Layer, mounts []mount.Mount) error {
	c := unpacking{snapshots: u.snapshots}
	if err := c.blob(&rising{Layer: l}, newFlight(l, unpack.Waiting), true).Await(ctx); err != nil {
		return err
	}
	got, err := u.s.Layers().In(u.scope).Apply(ctx, l.Descriptor, mounts, diff.ApplyOptions{})
	if err == nil && got.Digest != l.DiffID {
		err = fmt.Errorf("its content is %s where %s is wanted: %w", got.Digest, l.DiffID, errdefs.ErrFailedPrecondition)
	}
	return err
}
