// Package container is the contract of container records: what a container is
// to run, with which runtime, on which snapshot. What runs is a task.
package container

import (
	"context"
	"time"

	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/typed"
)

// A Container is a recipe for tasks.
type Container struct {
	ID          string // an identifier
	Labels      map[string]string
	Image       string // name of an image; not checked
	Runtime     Runtime
	Spec        *typed.Value // OCI runtime spec; its bytes become config.json unchanged
	Snapshotter string
	SnapshotKey string
	SandboxID   string
	Extensions  map[string]typed.Value
	CreatedAt   time.Time
	UpdatedAt   time.Time
}

// A Runtime is which shim runs a container's tasks.
type Runtime struct {
	Name    string       // "io.containerd.runc.v2", or the absolute path of a shim
	Options *typed.Value // given to the shim
}

// Stores gives out a Store for each scope.
type Stores interface {
	// In returns the containers as seen from scope, which must pass
	// [namespace.Scope.Check].
	In(scope namespace.Scope) Store
}

// A Store is the containers of one namespace.
//
// A bad id, an empty extension key, a bad label, a missing runtime name or
// spec, and a snapshot key without a snapshotter are
// [errdefs.ErrInvalidArgument]. A label set to "" is deleted. Methods may be
// called from any goroutine.
type Store interface {
	// Get is [errdefs.ErrNotFound] if there is no such container.
	Get(ctx context.Context, id string) (Container, error)

	// List returns the containers that match one of the filters, or all, in
	// byte order of their ids. A filter that does not parse is
	// [errdefs.ErrInvalidArgument].
	List(ctx context.Context, filters ...string) ([]Container, error)

	// Create is [errdefs.ErrAlreadyExists] if the id is taken. Whether image
	// and snapshot exist is not checked.
	Create(ctx context.Context, c Container) (Container, error)

	// Update is [errdefs.ErrNotFound] if the container is missing. Without
	// fields it replaces labels, spec, extensions, image and snapshot key;
	// another snapshotter or runtime name is [errdefs.ErrInvalidArgument].
	// The fields are "labels", "labels.<key>", "extensions",
	// "extensions.<key>", "spec", "image" and "snapshotkey", and anything else
	// is [errdefs.ErrInvalidArgument]. Extensions not given are kept.
	Update(ctx context.Context, c Container, fields ...string) (Container, error)

	// Delete removes the record only: [errdefs.ErrNotFound] if it is missing.
	Delete(ctx context.Context, id string) error
}
