// Package image is the contract of image records: names for content.
package image

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/namespace"
)

// An Image is a name and what it names. The name is opaque: whether it is a
// reference to a registry is the client's business.
type Image struct {
	Name      string
	Labels    map[string]string
	Target    ocispec.Descriptor
	CreatedAt time.Time
	UpdatedAt time.Time
}

// Stores gives out a Store for each scope.
type Stores interface {
	// In returns the images as seen from scope, which must pass
	// [namespace.Scope.Check].
	In(scope namespace.Scope) Store
}

// A Store is the images of one namespace.
//
// A label set to "" is deleted, on Create too. A scope whose lease does not
// exist is [errdefs.ErrNotFound] from Create and Update of an image with the
// label "containerd.io/gc.expire", which alone become resources of the lease:
// every other image keeps itself. Methods may be called from any goroutine.
type Store interface {
	// Get is [errdefs.ErrNotFound] if there is no such image.
	Get(ctx context.Context, name string) (Image, error)

	// List returns the images that match one of the filters, or all, in byte
	// order of their names. A filter that does not parse is
	// [errdefs.ErrInvalidArgument].
	List(ctx context.Context, filters ...string) ([]Image, error)

	// Create is [errdefs.ErrAlreadyExists] if the name is taken, and
	// [errdefs.ErrInvalidArgument] without a name, with a bad label, or with a
	// target that lacks a digest, a size or a media type. A time in o is used
	// instead of the clock.
	Create(ctx context.Context, i Image, o Options) (Image, error)

	// Update never creates: [errdefs.ErrNotFound] if the image is missing.
	// Without fields it replaces all but CreatedAt; the fields are "labels",
	// "labels.<key>", "annotations", "annotations.<key>" and "target", and
	// anything else is [errdefs.ErrInvalidArgument].
	Update(ctx context.Context, i Image, o Options, fields ...string) (Image, error)

	// Delete is [errdefs.ErrNotFound] if there is no such image, or if
	// o.Target is set and is not what the image names.
	Delete(ctx context.Context, name string, o DeleteOptions) error
}

// Options are what Create and Update take besides an image.
type Options struct {
	Time *time.Time // SOURCE_DATE_EPOCH of the caller, for CreatedAt and UpdatedAt
}

// DeleteOptions are what Delete takes besides a name.
type DeleteOptions struct {
	Target digest.Digest // empty is any
	Sync   bool          // return after a collection that began after the call
}
