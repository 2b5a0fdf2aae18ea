// Package activation is the contract of activations: mounts that are made for a
// caller before it can make its own. A snapshot of images, say, is mounts of
// files and one on top that joins them: the files are mounted once, outside of
// the container, and the caller gets a description of the last one, filled in.
//
// The type of a mount may have transforms before it, as in
// "format/mkdir/overlay". What they do is said in [Expand], [TakeDirs] and
// [TakeImage]; who does what is said in [NewPlan].
package activation

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
)

// An Active mount was made by the store.
type Active struct {
	mount.Mount                   // as it was after its transforms
	MountedAt   time.Time         `json:"mounted_at"`  // when it was made
	MountPoint  string            `json:"mount_point"` // where it is; of a loop device a link to it
	Data        map[string]string `json:"data,omitempty"`
}

// An Info is what is known of an activation.
type Info struct {
	Name   string
	Active []Active      // in the order in which they were made
	System []mount.Mount // what is left to the caller, in its order
	Labels map[string]string
}

// Options are what Activate takes besides mounts.
type Options struct {
	Labels map[string]string

	// Temporary asks for all mounts to be made. What is left to the caller is
	// then one bind mount of the last of them.
	Temporary bool

	// AllowTypes are types of mounts, and AllowTransforms words before them,
	// that the caller sees to itself. A store does them all the same where
	// something after them cannot do without.
	AllowTypes      []string
	AllowTransforms []string
}

// Stores gives out a Store for each scope.
type Stores interface {
	// In returns the activations as seen from scope, which must pass
	// [namespace.Scope.Check].
	In(scope namespace.Scope) Store
}

// A Store is the activations of one namespace. What it mounts, and where it
// writes, is in snapshots of that namespace or in what the same activation has
// mounted before, and nowhere else, whatever links lie there. Methods may be
// called from any goroutine.
//
// An activation ends with the boot of the machine. A restart of the store leaves
// it as it is.
type Store interface {
	// Activate makes mounts under a name. An error leaves none of them.
	//
	// It is [errdefs.ErrNotImplemented] if there is nothing for the store to
	// do, and then the caller mounts by itself; so it is for a type, an option
	// or a place that the store knows nothing about. A name that exists is
	// [errdefs.ErrAlreadyExists]. What fails [Check], a template that cannot be
	// filled in, what is in no snapshot of the namespace, and a committed
	// snapshot that would be written to, are [errdefs.ErrInvalidArgument]. A
	// scope whose lease does not exist is [errdefs.ErrNotFound]; the
	// activation, and one that turns out to exist, becomes a resource of the
	// lease. A label set to "" is left out.
	Activate(ctx context.Context, name string, mounts []mount.Mount, o Options) (Info, error)

	// Deactivate undoes what Activate made, the last first:
	// [errdefs.ErrNotFound] if there is no such activation. One that is in use
	// is [errdefs.ErrFailedPrecondition] and stays, without the mounts that
	// were not; it can be deactivated again.
	Deactivate(ctx context.Context, name string) error

	// Info returns an activation: [errdefs.ErrNotFound] if there is none of
	// that name.
	Info(ctx context.Context, name string) (Info, error)

	// List yields all in byte order of their names. An error is yielded last.
	List(ctx context.Context) iter.Seq2[Info, error]
}

const (
	nameMax   = 4096    // bytes
	mountsMax = 255     // of one activation
	textMax   = 1 << 20 // bytes of all that describes them
)

// Check is [errdefs.ErrInvalidArgument] for a name that is empty or longer than
// 4096 bytes, for more than 255 mounts or a MiB of text in them, and for a bad
// label.
func Check(name string, mounts []mount.Mount, o Options) error {
	if name == "" || len(name) > nameMax {
		return fmt.Errorf("activation name of %d bytes, want 1 to %d: %w", len(name), nameMax, errdefs.ErrInvalidArgument)
	}
	if len(mounts) > mountsMax {
		return fmt.Errorf("activation of %d mounts, want at most %d: %w", len(mounts), mountsMax, errdefs.ErrInvalidArgument)
	}
	n := 0
	for _, m := range mounts {
		n += len(m.Type) + len(m.Source) + len(m.Target)
		for _, o := range m.Options {
			n += len(o)
		}
	}
	if n > textMax {
		return fmt.Errorf("activation of %d bytes of mounts, want at most %d: %w", n, textMax, errdefs.ErrInvalidArgument)
	}
	return label.Check(o.Labels)
}
