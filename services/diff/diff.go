// Package diff is the contract of layers: applying one to a set of mounts, and
// making one from the difference of two.
package diff

import (
	"context"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/typed"
)

// Services gives out a Service for each scope.
type Services interface {
	// In returns the service as used from scope, which must pass
	// [namespace.Scope.Check].
	In(scope namespace.Scope) Service
}

// A Service applies and makes layers, whose bytes are in the content store of
// the same scope.
type Service interface {
	// Apply extracts a layer into mounts and returns the descriptor of its
	// uncompressed bytes. A blob the namespace does not have is
	// [errdefs.ErrNotFound], a media type it cannot read is
	// [errdefs.ErrNotImplemented], and a layer that does not hash to its
	// digest, does not decompress, or reaches out of the mounts is
	// [errdefs.ErrInvalidArgument]. Nothing outside the mounts is touched,
	// whatever the layer says.
	Apply(ctx context.Context, layer ocispec.Descriptor, mounts []mount.Mount, o ApplyOptions) (ocispec.Descriptor, error)

	// Diff writes a layer that turns what lower shows into what upper shows, and
	// returns its descriptor. No mounts below are an empty tree. The media type
	// of the descriptor is one of OCI, also where Docker's word for it was asked
	// for; one that cannot be written is [errdefs.ErrNotImplemented]. Mounts that
	// are not those of a snapshot of the namespace are
	// [errdefs.ErrInvalidArgument], a tree that changes while it is read is
	// [errdefs.ErrAborted], one that is removed is [errdefs.ErrNotFound], one
	// with something in it that no layer can say is
	// [errdefs.ErrFailedPrecondition], and one that is more than the service makes
	// a layer of is [errdefs.ErrResourceExhausted]. The same trees make the same
	// bytes.
	//
	// The layer is a blob of the scope, and has the label [LabelUncompressed] if
	// it is compressed, also if it was there before. An ingest under the ref is
	// started over; one that somebody else writes is [errdefs.ErrUnavailable].
	// After an error there is no blob.
	Diff(ctx context.Context, lower, upper []mount.Mount, o DiffOptions) (ocispec.Descriptor, error)
}

// LabelUncompressed is the label of a compressed layer that has the digest of
// its uncompressed bytes.
const LabelUncompressed = "containerd.io/uncompressed"

// ApplyOptions are what Apply takes besides a layer.
type ApplyOptions struct {
	Payloads map[string]typed.Value // for stream processors, by name
	SyncFS   bool                   // the caller asks for a sync; a snapshot is synced by its commit in any case
}

// DiffOptions are what Diff takes besides two trees.
type DiffOptions struct {
	MediaType       string            // empty is an OCI layer, gzip
	Ref             string            // of the ingest; empty makes one up
	Labels          map[string]string // of a blob that is new
	SourceDateEpoch *time.Time        // upper bound of every time in the layer
}
