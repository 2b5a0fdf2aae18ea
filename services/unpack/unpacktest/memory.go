package unpacktest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/snapshot/snapshottest"
	"github.com/gantryd/gantry/services/unpack"
)

// Memory unpacks into snapshots in memory, which have no files: it makes sure of
// the digests.
type Memory struct {
	blobs     content.Stores
	snapshots snapshot.Stores

	turn chan struct{} // held by whoever makes a snapshot
	last atomic.Int64
}

var _ unpack.Services = (*Memory)(nil)

// NewMemory returns what unpacks blobs into new snapshots in memory.
func NewMemory(blobs content.Stores, leases lease.Registry) *Memory {
	return In(blobs, snapshottest.NewMemory(leases))
}

// In returns what unpacks into snapshots that are there.
func In(blobs content.Stores, snapshots *snapshottest.Memory) *Memory {
	return &Memory{blobs: blobs, snapshots: snapshots, turn: make(chan struct{}, 1)}
}

// Fixture is m for [Run].
func (m *Memory) Fixture() Fixture {
	return Fixture{
		Services: m, Snapshots: m.snapshots, Snapshotter: snapshottest.Snapshotter,
		Members: m.snapshots.(*snapshottest.Memory),
	}
}

// In implements [unpack.Services].
func (m *Memory) In(scope namespace.Scope, snapshotter string) (unpack.Service, error) {
	snapshots, err := m.snapshots.In(scope, snapshotter)
	return memory{m, scope, snapshots, m.blobs.In(namespace.Scope{Name: scope.Name})}, err
}

type memory struct {
	*Memory
	scope     namespace.Scope
	snapshots snapshot.Store
	blobs     content.Store
}

// Unpack implements [unpack.Service].
func (m memory) Unpack(ctx context.Context, layers []unpack.Layer) iter.Seq2[unpack.Progress, error] {
	return func(yield func(unpack.Progress, error) bool) {
		names, err := unpack.Names(layers)
		parent := ""
		for i := 0; i < len(names) && err == nil; i++ {
			p := unpack.Progress{Layer: i, Name: names[i], Phase: unpack.Waiting, Total: layers[i].Size}
			if !yield(p, nil) {
				return
			}
			if p.Phase, err = m.layer(ctx, layers[i], parent, names[i]); err == nil && !yield(p, nil) {
				return
			}
			parent = names[i]
		}
		if err != nil {
			yield(unpack.Progress{}, err)
		}
	}
}

func (m memory) layer(ctx context.Context, l unpack.Layer, parent, name string) (unpack.Phase, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	key := "unpack " + strconv.FormatInt(m.last.Add(1), 10)
	labels := map[string]string{snapshot.LabelTarget: name}
	maps.Copy(labels, l.Labels)
	_, err := m.snapshots.Prepare(ctx, key, parent, snapshot.Options{Labels: labels})
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return unpack.Existed, nil
	}
	if err != nil {
		return "", err
	}
	err = m.read(ctx, l)
	if err == nil {
		err = m.snapshots.Commit(ctx, name, key, snapshot.Options{Labels: l.Labels})
	}
	if err == nil {
		return unpack.Committed, nil
	}
	if e := m.snapshots.Remove(context.WithoutCancel(ctx), key); e != nil {
		return "", errors.Join(err, e)
	}
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return unpack.Existed, nil
	}
	return "", err
}

// read makes sure that the layer is what it should be.
func (m memory) read(ctx context.Context, l unpack.Layer) error {
	if err := m.arrived(ctx, l); err != nil {
		return err
	}
	packed, err := content.ReadAll(ctx, m.blobs, l.Digest, 64<<20)
	if err != nil {
		return err
	}
	if n := int64(len(packed)); l.Size != 0 && n != l.Size {
		return fmt.Errorf("layer %s: %d bytes, want %d: %w", l.Digest, n, l.Size, errdefs.ErrInvalidArgument)
	}
	if got := l.Digest.Algorithm().FromBytes(packed); got != l.Digest {
		return fmt.Errorf("layer %s: the bytes hash to %s: %w", l.Digest, got, errdefs.ErrInvalidArgument)
	}
	b := packed
	switch l.MediaType {
	case ocispec.MediaTypeImageLayer:
	case ocispec.MediaTypeImageLayerGzip:
		var z *gzip.Reader
		if z, err = gzip.NewReader(bytes.NewReader(packed)); err == nil {
			b, err = io.ReadAll(z)
		}
		if err != nil {
			return fmt.Errorf("layer %s: %v: %w", l.Digest, err, errdefs.ErrInvalidArgument)
		}
	default:
		return fmt.Errorf("layer of media type %q: %w", l.MediaType, errdefs.ErrNotImplemented)
	}
	if got := digest.FromBytes(b); got != l.DiffID {
		return fmt.Errorf("layer %s: unpacked it is %s, want %s: %w", l.Digest, got, l.DiffID, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// arrived waits for the blob, if there is somebody to bring it.
func (m memory) arrived(ctx context.Context, l unpack.Layer) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for begun := false; l.Ingest != ""; {
		_, statusErr := m.blobs.Status(ctx, l.Ingest)
		_, err := m.blobs.Info(ctx, l.Digest)
		if !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		if statusErr != nil && begun {
			return err
		}
		begun = begun || statusErr == nil
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
