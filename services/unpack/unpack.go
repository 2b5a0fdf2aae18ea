// Package unpack is the contract of unpacking images: of layers, each of which
// becomes a snapshot on top of the one below it.
package unpack

import (
	"context"
	"iter"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/namespace"
)

// A Layer is one of an image.
type Layer struct {
	ocispec.Descriptor // of the packed bytes

	// DiffID is the digest of the bytes that are unpacked, as the image's config
	// has it.
	DiffID digest.Digest

	// Ingest is the ref of the ingest that brings the bytes, where they may not
	// be a blob yet. It need not have begun.
	Ingest string

	// Labels are those of the snapshot, if it is made.
	Labels map[string]string
}

// A Phase is how far a layer is.
type Phase string

// The phases of a layer, in their order. A layer that cannot be unpacked before
// those below it, and bytes that turn out to be others, begin anew. One that
// somebody else unpacks is in that one's phases.
const (
	Waiting    Phase = "waiting"    // for its bytes, or its turn
	Extracting Phase = "extracting" // its bytes, which may still be arriving
	Settled    Phase = "settled"    // is right, and waits to be made durable
	Committed  Phase = "committed"  // is a snapshot
	Existed    Phase = "existed"    // was one before
)

// Over says that nothing follows.
func (p Phase) Over() bool { return p == Committed || p == Existed }

// A Progress is how far one layer is.
type Progress struct {
	Layer int    // from 0, which is the lowest
	Name  string // of its snapshot: the chain id of the layers up to this one
	Phase Phase
	Done  int64 // packed bytes that were read
	Total int64 // packed bytes, 0 if unknown
}

// Services gives out a Service for each snapshotter and scope.
type Services interface {
	// In returns the service as used from scope, which must pass
	// [namespace.Scope.Check]: [errdefs.ErrInvalidArgument] if there is no
	// snapshotter of that name.
	In(scope namespace.Scope, snapshotter string) (Service, error)
}

// A Service unpacks layers into the snapshots of one namespace and snapshotter.
type Service interface {
	// Unpack makes a snapshot of each layer, the lowest first, under the chain
	// id of the layers up to it. It yields how far they are: each layer at least
	// once, the last time when it is over. When it ends without an error, all of
	// them are. An error is yielded last; whoever breaks off before ends the
	// call.
	//
	// Promises:
	//   - There is no snapshot under a chain id before the bytes of its layer
	//     hash to both of its digests and its files are durable, nor before
	//     there is one of the layer below.
	//   - What is there already is used. What was made, and what was there,
	//     becomes a resource of the scope's lease, which is
	//     [errdefs.ErrNotFound] if it does not exist.
	//   - What several calls unpack at the same time is unpacked once. When the
	//     call that does it ends, another does. Others may make the same
	//     snapshots by other means.
	//   - The result is that of applying one layer after the other.
	//   - After an error the snapshots that were made remain, and nothing else.
	//
	// No layers, too many, and a digest that does not parse are
	// [errdefs.ErrInvalidArgument]. So are bytes that do not hash to a layer's
	// digest, do not decompress, or are not an archive that stays inside; those
	// that do not hash to its DiffID are [errdefs.ErrFailedPrecondition]. A layer
	// whose blob the namespace does not have, without an ingest, or with one
	// that ended without a blob, is [errdefs.ErrNotFound]; a media type that
	// cannot be read is [errdefs.ErrNotImplemented]. An ingest that has begun,
	// and to which nothing comes for a while, is [errdefs.ErrUnavailable]. For
	// one that has not begun, the call waits as long as it lives. Where a
	// snapshot is removed that was there already, it is [errdefs.ErrAborted]; and
	// where others unpack more than the service takes, [errdefs.ErrUnavailable].
	Unpack(ctx context.Context, layers []Layer) iter.Seq2[Progress, error]
}
