// Package lease is the contract of leases: what protects objects from garbage
// collection while a client still builds something of them.
//
// Who owns what: imaged says which leases exist; that an object belongs to a
// lease is kept with the object, by the daemon that has it. A resource of a
// lease that does not exist counts for nothing.
package lease

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/filter"
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
}

// idMax is how long an id is at most, in bytes.
const idMax = 1024

// CheckID is [errdefs.ErrInvalidArgument] for an id that is empty or longer than
// 1024 bytes.
func CheckID(id string) error {
	if id == "" || len(id) > idMax {
		return fmt.Errorf("lease id of %d bytes, want 1 to %d: %w", len(id), idMax, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Field reads the field of the lease at path, for filters: "id" and
// "labels.<key>".
func (l Lease) Field(path []string) (string, bool) {
	switch {
	case len(path) == 1 && path[0] == "id":
		return l.ID, true
	case len(path) > 1 && path[0] == "labels":
		return filter.Labels(l.Labels, path[1:])
	}
	return "", false
}

// Expires returns the time at which the lease ends by itself. A label that is
// no time says nothing, as in containerd.
func (l Lease) Expires() (time.Time, bool) {
	at, err := time.Parse(time.RFC3339, l.Labels[LabelExpire])
	return at, err == nil
}

// The types of resources. That of a snapshot is TypeSnapshots, a slash, and the
// name of the snapshotter.
const (
	TypeContent   = "content"
	TypeIngests   = "ingests"
	TypeImages    = "images"
	TypeSnapshots = "snapshots"
)

// A Resource is an object that a lease protects.
type Resource struct {
	ID   string // digest, ref, name or key
	Type string
}

// Kind is the type without the snapshotter.
func (r Resource) Kind() string {
	kind, _, _ := strings.Cut(r.Type, "/")
	return kind
}

// Check is [errdefs.ErrInvalidArgument] for a malformed digest, an empty id and
// an empty snapshotter, and [errdefs.ErrNotImplemented] for another type.
func (r Resource) Check() error {
	kind, of, more := strings.Cut(r.Type, "/")
	switch kind {
	case TypeContent, TypeIngests, TypeImages:
		if more {
			return fmt.Errorf("resource type %q: want %q: %w", r.Type, kind, errdefs.ErrInvalidArgument)
		}
	case TypeSnapshots:
		if of == "" || strings.Contains(of, "/") {
			return fmt.Errorf("resource type %q: want a snapshotter: %w", r.Type, errdefs.ErrInvalidArgument)
		}
	default:
		return fmt.Errorf("resource type %q: %w", r.Type, errdefs.ErrNotImplemented)
	}
	if r.ID == "" {
		return fmt.Errorf("resource id must not be empty: %w", errdefs.ErrInvalidArgument)
	}
	if kind == TypeContent {
		if err := digest.Digest(r.ID).Validate(); err != nil {
			return fmt.Errorf("resource id %q: %v: %w", r.ID, err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// Compare orders resources by type and id.
func (r Resource) Compare(o Resource) int {
	return cmp.Or(strings.Compare(r.Type, o.Type), strings.Compare(r.ID, o.ID))
}

// Stores gives out a Store for each namespace. The scope's lease is ignored.
type Stores interface {
	// In returns the leases as seen from scope, which must pass
	// [namespace.Scope.Check].
	In(scope namespace.Scope) Store
}

// A Store is the leases of one namespace. A missing lease, and one past its
// LabelExpire, is [errdefs.ErrNotFound] from every method but Create and List,
// which see nothing of it either. An id is any text up to 1024 bytes. Methods
// may be called from any goroutine.
type Store interface {
	// Create makes a lease; an empty id is replaced by one that is unused. An
	// id that exists is [errdefs.ErrAlreadyExists]; one that is too long, and a
	// bad label, is [errdefs.ErrInvalidArgument]. A label set to "" is left
	// out.
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

	// AddResource puts r under the lease; one that it has already is fine.
	// Whether r exists is not checked. What fails [Resource.Check] has that
	// error. It is [errdefs.ErrUnavailable] while the daemon that owns r does
	// not answer.
	AddResource(ctx context.Context, id string, r Resource) error

	// DeleteResource takes r from the lease; one that it does not have is
	// fine. Errors as for AddResource.
	DeleteResource(ctx context.Context, id string, r Resource) error

	// ListResources returns what the lease has, in order of type and id, or
	// [errdefs.ErrUnavailable] while any owner does not answer.
	ListResources(ctx context.Context, id string) ([]Resource, error)
}

// A Ref names a lease for good: its id may be used again, its generation not.
type Ref struct {
	ID         string
	Generation uint64
}

// Compare orders refs by id and generation.
func (r Ref) Compare(o Ref) int {
	return cmp.Or(strings.Compare(r.ID, o.ID), cmp.Compare(r.Generation, o.Generation))
}

// A Registry says which leases exist.
type Registry interface {
	// Lookup is [errdefs.ErrNotFound] "lease does not exist" if it does not
	// exist or has expired. A scope without a lease is
	// [errdefs.ErrInvalidArgument].
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
