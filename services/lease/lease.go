// Package lease is the contract of leases: what protects objects from garbage
// collection while a client still builds something of them.
//
// Who owns what: imaged says which leases exist; that an object belongs to a
// lease is kept with the object, by the daemon that has it. A resource of a
// lease that does not exist counts for nothing.
package lease

import (
	"context"
	"time"

	"github.com/gantryd/gantry/services/namespace"
)

// Labels with a meaning.
const (
	LabelExpire = "containerd.io/gc.expire" // RFC 3339; past it the lease protects nothing
	LabelFlat   = "containerd.io/gc.flat"   // protects only what it names, not what that refers to
)

// A Lease protects its resources as long as it exists.
type Lease struct {
	ID        string
	Labels    map[string]string
	CreatedAt time.Time

	// Generation tells two leases of one id apart, of which the first was
	// deleted. It grows.
	Generation uint64
}

// A Resource is an object that a lease protects.
type Resource struct {
	ID   string // digest, ref, name or key
	Type string // "content", "ingests", "images" or "snapshots/<snapshotter>"
}

// Stores gives out a Store for each namespace. The scope's lease is ignored.
type Stores interface {
	// In returns the leases as seen from scope, which must pass
	// [namespace.Scope.Check].
	In(scope namespace.Scope) Store
}

// A Store is the leases of one namespace. A missing lease is
// [errdefs.ErrNotFound] from every method but Create and List. Methods may be
// called from any goroutine.
type Store interface {
	// Create makes a lease; an empty id is replaced by one that is unused. An
	// id that exists is [errdefs.ErrAlreadyExists].
	Create(ctx context.Context, id string, labels map[string]string) (Lease, error)

	// Get returns a lease.
	Get(ctx context.Context, id string) (Lease, error)

	// Delete ends a lease; with sync it returns after a collection that began
	// after the call.
	Delete(ctx context.Context, id string, sync bool) error

	// List returns the leases that match one of the filters, or all, in byte
	// order of their ids. A filter that does not parse is
	// [errdefs.ErrInvalidArgument].
	List(ctx context.Context, filters ...string) ([]Lease, error)

	// AddResource puts r under the lease. Whether r exists is not checked. A
	// malformed digest or an empty snapshotter is
	// [errdefs.ErrInvalidArgument], another type is
	// [errdefs.ErrNotImplemented].
	AddResource(ctx context.Context, id string, r Resource) error

	// DeleteResource takes r from the lease; one that it does not have is
	// fine. Errors as for AddResource.
	DeleteResource(ctx context.Context, id string, r Resource) error

	// ListResources returns what the lease has, in order of type and id.
	ListResources(ctx context.Context, id string) ([]Resource, error)
}

// A Ref names a lease for good: its id may be used again, its generation not.
type Ref struct {
	ID         string
	Generation uint64
}

// A Registry says which leases exist.
type Registry interface {
	// Lookup is [errdefs.ErrNotFound] "lease does not exist" if it does not.
	// The scope must name a lease.
	Lookup(ctx context.Context, scope namespace.Scope) (Ref, error)
}

// Members is the part of a lease that one owner of objects keeps.
type Members interface {
	// AddMember records that r belongs to the lease.
	AddMember(ctx context.Context, ns string, l Ref, r Resource) error

	// RemoveMember is fine if r does not belong to it.
	RemoveMember(ctx context.Context, ns string, l Ref, r Resource) error

	// ListMembers returns what belongs to the lease, in order of type and id.
	ListMembers(ctx context.Context, ns string, l Ref) ([]Resource, error)

	// DropMembers forgets everything that belonged to a lease that is gone.
	DropMembers(ctx context.Context, ns string, l Ref) error
}
