// Package image is the contract of image records: names for content.
package image

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

// nameMax is how long a name is at most, in bytes: far more than a reference to
// a registry may have.
const nameMax = 4096

// An Image is a name and what it names. The name is opaque: whether it is a
// reference to a registry is the client's business. Of the target the media
// type, digest, size and annotations are kept.
type Image struct {
	Name      string
	Labels    map[string]string
	Target    ocispec.Descriptor
	CreatedAt time.Time
	UpdatedAt time.Time
}

// Check is [errdefs.ErrInvalidArgument] without a name, with one that is too
// long, with a bad label, and with a target that lacks a valid digest, a size or
// a media type.
func (i Image) Check() error {
	switch n := len(i.Name); {
	case n == 0:
		return fmt.Errorf("image name must not be empty: %w", errdefs.ErrInvalidArgument)
	case n > nameMax:
		return fmt.Errorf("image name of %d bytes, at most %d: %w", n, nameMax, errdefs.ErrInvalidArgument)
	case i.Target.MediaType == "":
		return fmt.Errorf("image %q: target has no media type: %w", i.Name, errdefs.ErrInvalidArgument)
	case i.Target.Size <= 0:
		return fmt.Errorf("image %q: target size %d must be greater than zero: %w", i.Name, i.Target.Size, errdefs.ErrInvalidArgument)
	}
	if err := i.Target.Digest.Validate(); err != nil {
		return fmt.Errorf("image %q: target digest %q: %v: %w", i.Name, i.Target.Digest, err, errdefs.ErrInvalidArgument)
	}
	if err := label.Check(i.Labels); err != nil {
		return fmt.Errorf("image %q: %w", i.Name, err)
	}
	return nil
}

// Expires says whether the image has the label that makes it expire. Such an
// image does not keep itself, and a lease may keep it.
func (i Image) Expires() bool {
	_, ok := i.Labels[lease.LabelExpire]
	return ok
}

// Updated returns old as a request changes it that gives new and names fields:
// the rule of [Store.Update] but for the times.
func Updated(old, new Image, fields []string) (Image, error) {
	out := old
	if len(fields) == 0 {
		out.Labels, out.Target = new.Labels, new.Target
	}
	for _, f := range fields {
		var err error
		switch key, annotation := strings.CutPrefix(f, "annotations."); {
		case f == "target":
			out.Target = new.Target
		case f == "annotations":
			out.Target.Annotations = new.Target.Annotations
		case annotation && key != "":
			a := make(map[string]string, len(out.Target.Annotations)+1)
			maps.Copy(a, out.Target.Annotations)
			a[key] = new.Target.Annotations[key]
			out.Target.Annotations = a
		default:
			out.Labels, err = label.Update(out.Labels, new.Labels, []string{f})
		}
		if err != nil {
			return Image{}, fmt.Errorf("image %q: %w", old.Name, err)
		}
	}
	return out.Clean(), out.Check()
}

// Clean returns the image as it is kept: without labels and annotations set to
// "", and without what is not kept of a target.
func (i Image) Clean() Image {
	i.Labels = label.Clean(i.Labels)
	i.Target = ocispec.Descriptor{
		MediaType:   i.Target.MediaType,
		Digest:      i.Target.Digest,
		Size:        i.Target.Size,
		Annotations: label.Clean(i.Target.Annotations),
	}
	return i
}

// Field reads the field of the image at path, for filters: "name",
// "target.digest", "target.mediatype", "labels.<key>" and "annotations.<key>".
func (i Image) Field(path []string) (string, bool) {
	if len(path) < 2 {
		return i.Name, len(path) == 1 && path[0] == "name"
	}
	switch path[0] {
	case "target":
		switch path[1] {
		case "digest":
			return i.Target.Digest.String(), true
		case "mediatype":
			return i.Target.MediaType, true
		}
	case "labels":
		return filter.Labels(i.Labels, path[1:])
	case "annotations":
		return filter.Labels(i.Target.Annotations, path[1:])
	}
	return "", false
}

// Stores gives out a Store for each scope.
type Stores interface {
	// In returns the images as seen from scope, which must pass
	// [namespace.Scope.Check].
	In(scope namespace.Scope) Store
}

// A Store is the images of one namespace.
//
// A label or annotation set to "" is deleted, on Create too. Create and Update
// of an image with the label [lease.LabelExpire] make it a resource of the
// scope's lease, and are [errdefs.ErrNotFound] if that does not exist; every
// other image keeps itself, and its scope's lease is not asked for. Delete takes
// the image from the scope's lease, if there is one. Methods may be called from
// any goroutine.
type Store interface {
	// Get is [errdefs.ErrNotFound] if there is no such image.
	Get(ctx context.Context, name string) (Image, error)

	// List returns the images that match one of the filters, or all, in byte
	// order of their names. A filter that does not parse is
	// [errdefs.ErrInvalidArgument].
	List(ctx context.Context, filters ...string) ([]Image, error)

	// Create is [errdefs.ErrAlreadyExists] if the name is taken; what fails
	// [Image.Check] has that error. A time in o is used instead of the clock.
	Create(ctx context.Context, i Image, o Options) (Image, error)

	// Update never creates: [errdefs.ErrNotFound] if the image is missing.
	// Without fields it replaces all but CreatedAt; the fields are "labels",
	// "labels.<key>", "annotations", "annotations.<key>" and "target", and
	// anything else is [errdefs.ErrInvalidArgument]. What then fails
	// [Image.Check] has that error and changes nothing. The annotations are
	// those of the target.
	Update(ctx context.Context, i Image, o Options, fields ...string) (Image, error)

	// Delete is [errdefs.ErrNotFound] if there is no such image, or if
	// o.Target is set and is not what the image names.
	Delete(ctx context.Context, name string, o DeleteOptions) error
}

// Options are what Create and Update take besides an image.
type Options struct {
	// Time is the caller's SOURCE_DATE_EPOCH, for CreatedAt and UpdatedAt. A
	// year that is not one to 9999 is [errdefs.ErrInvalidArgument].
	Time *time.Time
}

// Now returns the time that a call is made at, in UTC, where the clock says now.
func (o Options) Now(now time.Time) (time.Time, error) {
	if o.Time != nil {
		now = *o.Time
	}
	now = now.UTC()
	if y := now.Year(); y < 1 || y > 9999 {
		return time.Time{}, fmt.Errorf("time %v: %w", now, errdefs.ErrInvalidArgument)
	}
	return now, nil
}

// DeleteOptions are what Delete takes besides a name.
type DeleteOptions struct {
	Target digest.Digest // empty is any
	Sync   bool          // return after a collection that began after the call
}
