package unpack

import (
	"fmt"
	"iter"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/gantryd/gantry/services/snapshot"
)

// LayersMax is how many layers an image has at most.
const LayersMax = 1000

// Names returns the names of the snapshots of layers, or
// [errdefs.ErrInvalidArgument] if they cannot be unpacked.
func Names(layers []Layer) ([]string, error) {
	if n := len(layers); n == 0 || n > LayersMax {
		return nil, fmt.Errorf("%d layers, want from 1 to %d: %w", n, LayersMax, errdefs.ErrInvalidArgument)
	}
	ids := make([]digest.Digest, len(layers))
	for i, l := range layers {
		if err := l.check(); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		ids[i] = l.DiffID
	}
	names := make([]string, len(layers))
	for i, id := range identity.ChainIDs(ids) {
		names[i] = id.String()
	}
	return names, nil
}

func (l Layer) check() error {
	for _, d := range []digest.Digest{l.Digest, l.DiffID} {
		if err := d.Validate(); err != nil {
			return fmt.Errorf("digest %.100q: %v: %w", d, err, errdefs.ErrInvalidArgument)
		}
	}
	if l.Size < 0 {
		return fmt.Errorf("size %d: %w", l.Size, errdefs.ErrInvalidArgument)
	}
	return snapshot.Options{Labels: l.Labels}.Check(snapshot.Traits{})
}

// Wait ends a call, and tells tell, if it is not nil, how far it is.
func Wait(progress iter.Seq2[Progress, error], tell func(Progress)) error {
	for p, err := range progress {
		if err != nil {
			return err
		}
		if tell != nil {
			tell(p)
		}
	}
	return nil
}
