package client

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/unpack"
)

// Labels that keep one object alive by another, and what is known of a layer;
// containerd's clients set and read the same.
const (
	labelContent      = "containerd.io/gc.ref.content"
	labelSnapshot     = "containerd.io/gc.ref.snapshot."
	labelUncompressed = "containerd.io/uncompressed"
)

// SnapshotterDefault is used where neither the caller nor the namespace names
// another.
const SnapshotterDefault = "overlayfs"

// leaseTime is how long what a client left behind is kept.
const leaseTime = 24 * time.Hour

// withLease calls f with a lease that keeps what f makes until f has returned.
func (n *Namespace) withLease(ctx context.Context, f func(lease string) error) error {
	leases := n.c.Leases.In(n.scope(""))
	id := "client-" + rand.Text()
	err := once(ctx, func(ctx context.Context) error {
		_, err := leases.Create(ctx, id, map[string]string{
			lease.LabelExpire: time.Now().Add(leaseTime).UTC().Format(time.RFC3339),
		})
		return notExists(err)
	})
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	err = f(id)
	// What is left if this fails too expires.
	ctx, cancel := clean(ctx)
	defer cancel()
	e := once(ctx, func(ctx context.Context) error { return onlyDone(leases.Delete(ctx, id, false)) })
	if e != nil && err == nil {
		return fmt.Errorf("lease %s: %w", id, e)
	}
	return err
}

// Unpack makes snapshots of an image's layers, each on top of the one below,
// and returns the name of the last, which is [Resolved.ChainID]. What is there
// already is used. Others may unpack the same layers at the same time.
//
// A layer whose bytes are not what the image's config says is
// [errdefs.ErrFailedPrecondition], and no snapshot of it stays.
func (n *Namespace) Unpack(ctx context.Context, r Resolved, snapshotter string) (string, error) {
	if len(r.Layers) == 0 {
		return "", nil
	}
	return r.ChainID().String(), n.withLease(ctx, func(lease string) error {
		return n.unpack(ctx, lease, r, snapshotter, nil)
	})
}

// unpack is Unpack under a lease.
func (n *Namespace) unpack(ctx context.Context, lease string, r Resolved, snapshotter string, t teller) error {
	service, err := n.c.Unpacking.In(n.scope(lease), snapshotter)
	if err != nil {
		return err
	}
	layers := make([]unpack.Layer, len(r.Layers))
	for i, l := range r.Layers {
		layers[i] = unpack.Layer{Descriptor: l, DiffID: r.Image.RootFS.DiffIDs[i]}
	}
	told := toldLayers{tell: t, layers: make([]unpack.Progress, len(layers)), made: make(map[int]bool)}
	told.add(unpack.Progress{Name: r.chain()[0].String(), Phase: unpack.Waiting, Total: layers[0].Size})
	// What was made before the daemon went away is there when it is back.
	if err := again(ctx, imageTime, func(ctx context.Context, _ bool) error {
		return unpack.Wait(service.Unpack(ctx, layers), told.add)
	}); err != nil {
		return err
	}
	// The image keeps its config, and its config the snapshots.
	labels := []blobLabel{{r.Config.Digest, labelSnapshot + snapshotter, r.ChainID().String()}}
	for i := range layers {
		if told.made[i] {
			labels = append(labels, blobLabel{layers[i].Digest, labelUncompressed, layers[i].DiffID.String()})
		}
	}
	return n.label(ctx, lease, labels)
}

// toldLayers are how far the layers of an image are.
type toldLayers struct {
	tell   teller
	layers []unpack.Progress
	made   map[int]bool
	done   int64 // bytes; what was told is not taken back
}

func (t *toldLayers) add(p unpack.Progress) {
	if p.Layer < 0 || p.Layer >= len(t.layers) {
		return
	}
	t.layers[p.Layer] = p
	t.made[p.Layer] = t.made[p.Layer] || p.Phase == unpack.Committed
	done, total := int64(0), int64(0)
	for _, l := range t.layers {
		total += l.Total
		if l.Phase.Over() {
			done += l.Total
		} else {
			done += min(l.Done, l.Total)
		}
	}
	t.done = max(t.done, done)
	if t.tell != nil {
		t.tell(Progress{Stage: StageUnpack, Done: t.done, Total: total, Layers: slices.Clone(t.layers)})
	}
}

// A blobLabel is a label that a blob gets.
type blobLabel struct {
	blob       digest.Digest
	key, value string
}

// labelsMax is how many labels are set at once: the store makes those durable
// together that come together.
const labelsMax = 32

// label sets labels of blobs.
func (n *Namespace) label(ctx context.Context, lease string, labels []blobLabel) error {
	blobs := n.c.Content.In(n.scope(lease))
	var g errgroup.Group
	g.SetLimit(labelsMax)
	for _, l := range labels {
		g.Go(func() error {
			return once(ctx, func(ctx context.Context) error { return setLabel(ctx, blobs, l.blob, l.key, l.value) })
		})
	}
	return g.Wait()
}

func setLabel(ctx context.Context, blobs content.Blobs, d digest.Digest, key, value string) error {
	_, err := blobs.Update(ctx, content.Info{Digest: d, Labels: map[string]string{key: value}}, "labels."+key)
	return err
}
