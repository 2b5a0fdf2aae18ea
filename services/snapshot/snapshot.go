// Package snapshot is the contract of snapshotters: stacks of directory trees,
// each a child of an immutable one, handed out as descriptions of mounts.
package snapshot

import (
	"context"
	"iter"
	"time"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
)

// A Kind is what may be done with a snapshot. Its text is containerd's, as in
// filters.
type Kind string

// The kinds of snapshot.
const (
	Active    Kind = "active"    // writable; can be committed
	View      Kind = "view"      // read-only; cannot
	Committed Kind = "committed" // immutable; can be a parent
)

// Labels with a meaning to snapshotters. Those with the prefix are handed down
// to the backend.
const (
	LabelInherited  = "containerd.io/snapshot/"
	LabelTarget     = "containerd.io/snapshot.ref"
	LabelUIDMapping = "containerd.io/snapshot/uidmapping"
	LabelGIDMapping = "containerd.io/snapshot/gidmapping"
)

// An Info is what is known of a snapshot.
type Info struct {
	Kind      Kind
	Name      string // key of an active snapshot or view, name of a committed one
	Parent    string // name of the parent, empty for none
	Labels    map[string]string
	CreatedAt time.Time
	UpdatedAt time.Time
}

// A Usage is what a snapshot occupies, its parents not counted.
type Usage struct {
	Inodes int64
	Size   int64 // bytes
}

// Options are what Prepare, View and Commit take besides names.
type Options struct {
	Labels map[string]string
	Parent string // Commit only: rebases a snapshot that has no parent
}

// Traits are what a snapshotter does beyond the contract. The promises test
// that they are told truly.
type Traits struct {
	Rebase bool // Commit takes a parent

	// RemapIDs says that the mounts of a snapshot whose labels
	// [LabelUIDMapping] and [LabelGIDMapping] are a mapping show its parent
	// with the ids of the container, by the options "uidmap" and "gidmap".
	// Without it these labels mean nothing: who wants other ids changes the
	// owners in a parent of its own, as containerd's clients do.
	RemapIDs bool
}

// Stores gives out a Store for each snapshotter and scope.
type Stores interface {
	// In returns the named snapshotter as seen from scope, which must pass
	// [namespace.Scope.Check]: [errdefs.ErrInvalidArgument] if there is no
	// snapshotter of that name.
	In(scope namespace.Scope, snapshotter string) (Store, error)
}

// A Store is the snapshots of one namespace in one snapshotter. Keys and names
// are opaque and share one space.
//
// Promises that hold for every method:
//   - A missing snapshot is [errdefs.ErrNotFound].
//   - A method that fails changes nothing.
//   - A scope whose lease does not exist is [errdefs.ErrNotFound] from Prepare,
//     View and Commit; what they create, and what turns out to exist already,
//     becomes a resource of the lease.
//   - A label set to "" is deleted.
//   - The mapping labels, [LabelUIDMapping] and [LabelGIDMapping], are both there
//     or none, and as [idmap.Parse] wants them: else it is
//     [errdefs.ErrInvalidArgument].
//   - Methods may be called from any goroutine.
type Store interface {
	// Stat returns what is known of a snapshot.
	Stat(ctx context.Context, key string) (Info, error)

	// Update replaces the labels, or with fields "labels.<key>" only those.
	// Any other field is [errdefs.ErrInvalidArgument].
	Update(ctx context.Context, info Info, fields ...string) (Info, error)

	// Usage is as of the commit for a committed snapshot, and as of now for
	// others.
	Usage(ctx context.Context, key string) (Usage, error)

	// Mounts returns what to mount to use an active snapshot or a view; a
	// committed one is [errdefs.ErrFailedPrecondition].
	Mounts(ctx context.Context, key string) ([]mount.Mount, error)

	// Prepare makes an active snapshot on a committed parent, or on nothing if
	// parent is empty. It is [errdefs.ErrAlreadyExists] if the key exists or
	// if the label [LabelTarget] names a snapshot that does, and
	// [errdefs.ErrInvalidArgument] if the parent is not committed.
	Prepare(ctx context.Context, key, parent string, o Options) ([]mount.Mount, error)

	// View is Prepare for reading only.
	View(ctx context.Context, key, parent string, o Options) ([]mount.Mount, error)

	// Commit makes an active snapshot immutable under a new name, durably: its
	// files are on disk before the name is. The key is gone afterwards. A name
	// that exists is [errdefs.ErrAlreadyExists] and leaves the key; a key that
	// is not active is [errdefs.ErrFailedPrecondition].
	Commit(ctx context.Context, name, key string, o Options) error

	// Remove forgets a snapshot; its files go later. One with children is
	// [errdefs.ErrFailedPrecondition].
	Remove(ctx context.Context, key string) error

	// List yields the snapshots that match one of the filters, or all, in
	// order of their names. A filter that does not parse is
	// [errdefs.ErrInvalidArgument]. An error is yielded last.
	List(ctx context.Context, filters ...string) iter.Seq2[Info, error]

	// Cleanup removes what earlier calls left on disk.
	Cleanup(ctx context.Context) error
}
