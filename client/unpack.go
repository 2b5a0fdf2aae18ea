package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/snapshot"
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
	snapshots, err := n.c.Snapshots.In(n.scope(lease), snapshotter)
	if err != nil {
		return err
	}
	u := unpacker{
		resolved:  r,
		snapshots: snapshots,
		diffs:     n.c.Diffs.In(n.scope(lease)),
		blobs:     n.c.Content.In(n.scope(lease)),
	}
	parent := ""
	done, total := int64(0), int64(0)
	for _, l := range r.Layers {
		total += l.Size
	}
	for i, name := range r.chain() {
		t.tell(StageUnpack, done, total)
		done += r.Layers[i].Size
		err := again(ctx, layerTime, func(ctx context.Context, _ bool) error {
			return u.layer(ctx, i, parent, name.String())
		})
		if err != nil {
			return fmt.Errorf("layer %d, %s: %w", i, r.Layers[i].Digest, err)
		}
		parent = name.String()
	}
	// The image keeps its config, and its config the snapshots.
	return once(ctx, func(ctx context.Context) error {
		return setLabel(ctx, u.blobs, r.Config.Digest, labelSnapshot+snapshotter, parent)
	})
}

// An unpacker makes the snapshots of one image.
type unpacker struct {
	resolved  Resolved
	snapshots snapshot.Store
	diffs     diff.Service
	blobs     content.Blobs
}

// layer makes the snapshot name of layer i on parent, unless it is there.
func (u unpacker) layer(ctx context.Context, i int, parent, name string) error {
	want := u.resolved.Image.RootFS.DiffIDs[i]
	key := "extract-" + rand.Text() + " " + name
	// Prepare says itself if the layer is there: no call only to ask.
	mounts, err := u.snapshots.Prepare(ctx, key, parent, snapshot.Options{
		Labels: map[string]string{snapshot.LabelTarget: name},
	})
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	var got ocispec.Descriptor
	if err == nil {
		got, err = u.diffs.Apply(ctx, u.resolved.Layers[i], mounts, diff.ApplyOptions{})
	}
	if err == nil && got.Digest != want {
		err = fmt.Errorf("its content is %s where the image's config says %s: %w", got.Digest, want, errdefs.ErrFailedPrecondition)
	}
	if err == nil {
		err = u.snapshots.Commit(ctx, name, key, snapshot.Options{})
	}
	if err != nil {
		err = errors.Join(notExists(err), u.drop(ctx, key))
	}
	if err != nil {
		return err
	}
	return setLabel(ctx, u.blobs, u.resolved.Layers[i].Digest, labelUncompressed, want.String())
}

func setLabel(ctx context.Context, blobs content.Blobs, d digest.Digest, key, value string) error {
	_, err := blobs.Update(ctx, content.Info{Digest: d, Labels: map[string]string{key: value}}, "labels."+key)
	return err
}

// drop removes a snapshot that is not going to be committed, also if the caller
// has gone away.
func (u unpacker) drop(ctx context.Context, key string) error {
	ctx, cancel := clean(ctx)
	defer cancel()
	return once(ctx, func(ctx context.Context) error { return onlyDone(u.snapshots.Remove(ctx, key)) })
}
