package snapshotd

import (
	"context"
	"errors"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/tree"
)

// An extracted layer is one that a snapshot was filled with.
type extracted struct {
	MediaType string        `json:"media_type"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	DiffID    digest.Digest `json:"diff_id"`
}

func (e extracted) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: e.MediaType, Digest: e.Digest, Size: e.Size}
}

// An origin is what is known of how a committed tree came to be, in a row of its
// own: a list does not read it.
type origin struct {
	Sum    string      `json:"sum,omitempty"`    // see sumOf
	Layers []extracted `json:"layers,omitempty"` // in order
}

func originKey(id uint64) []byte { return kv.Key("origin", hexID(id)) }

// originOf is of nothing if nothing is known.
func originOf(tx *kv.Tx, id uint64) (o origin, err error) {
	if err = tx.GetJSON(originKey(id), &o); errors.Is(err, errdefs.ErrNotFound) {
		err = nil
	}
	return o, err
}

// layersMax is how many layers are remembered of one snapshot. One alone can be
// extracted again.
const layersMax = 2

// noteLayer notes, in memory, that a layer was extracted into an active snapshot.
// A restart forgets it: then nobody knows what the snapshot was filled with.
func (s *Store) noteLayer(id uint64, desc ocispec.Descriptor, diffID digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.layers[id]) < layersMax {
		s.layers[id] = append(s.layers[id], extracted{desc.MediaType, desc.Digest, desc.Size, diffID})
	}
}

func (s *Store) layersOf(id uint64) []extracted {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.layers[id]
}

func (s *Store) forgetLayers(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.layers, id)
}

// sumOf is the sum of what a committed snapshot has beyond its parents, or of
// all of it where the driver does not keep that apart. An empty one says nothing.
func sumOf(ctx context.Context, d driver.Driver, own driver.Snapshot) (string, error) {
	if d, ok := d.(driver.Summer); ok {
		return d.Sum(ctx, own)
	}
	dir, err := openOwn(ctx, d, own)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	sum, err := tree.SumOf(ctx, int(dir.Fd()))
	return sum.String(), err
}

// openOwn opens the directory that sumOf is of.
func openOwn(ctx context.Context, d driver.Driver, own driver.Snapshot) (*os.File, error) {
	if d, ok := d.(driver.Layered); ok {
		return d.Upper(own)
	}
	return d.Tree(ctx, own)
}
