// Package driver is the contract between snapshotd, which has the records of
// snapshots, and what has their trees: directories that overlayfs stacks, copies,
// subvolumes, images, or another process. A driver has no records of its own. It
// is told all that it has to know, and knows a tree by its id.
package driver

import (
	"context"
	"log/slog"
	"os"
	"strings"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/kernel"
	"github.com/gantryd/gantry/snapshotd/layer"
)

// A Ref names the tree of a snapshot.
type Ref struct {
	ID        uint64 // never used again
	Namespace string // whose it is
	Key       string // "<namespace>/<id>/<name>": what an external snapshotter calls it
}

// A Snapshot is one as its driver has to know it.
type Snapshot struct {
	Ref
	Kind    snapshot.Kind
	Parents []Ref             // the topmost first
	Labels  map[string]string // those that are handed down
}

// Inherited tells whether a label of that key is handed down.
func Inherited(key string) bool {
	return strings.HasPrefix(key, snapshot.LabelInherited) || key == snapshot.LabelTarget
}

// Traits are what a driver does beyond what each has to.
type Traits struct {
	snapshot.Traits

	// Beside says that the directory <root>/snapshots/<id> of a snapshot has its
	// tree at "fs", and that whatever else is in it only the driver writes. Then
	// it may have images there, which the kernel is made to read.
	Beside bool

	// Kept are the names of images there that only the driver writes, whatever
	// becomes of the snapshot. The kernel is made to read them.
	Kept []string

	// NoChown says that clients are not to make a tree with other owners of a
	// parent, which [snapshot.Traits.RemapIDs] saves them.
	NoChown bool

	// Views says that a view of a parent has a tree of its own, which is made,
	// listed and removed. Elsewhere such a view is its parents' trees.
	Views bool
}

// A Found is what a driver reads in mounts.
type Found struct {
	ID uint64 // of the topmost tree that is in them

	// Write says that the mounts write to it: it is an active snapshot's.
	Write bool

	// Alone says that the mounts leave out what is below, which is to come
	// later, by a rebase.
	Alone bool
}

// A Driver keeps the trees of one snapshotter.
//
// Whoever calls makes sure that two methods that change the tree of one id do
// not run at the same time. A method that fails may have done a part, and can be
// called again. After a crash at any moment, what Has says is there is as whole
// as it was promised to be.
type Driver interface {
	// Traits are the same at any time.
	Traits() Traits

	// Create makes the tree of a new active snapshot, or of a view that has one.
	// Nothing of it need be durable. What is there of it already is fine.
	// [errdefs.ErrAlreadyExists] says that the label [snapshot.LabelTarget]
	// names something that the driver has had before.
	Create(ctx context.Context, s Snapshot) error

	// Mounts describes how to use an active snapshot or a view.
	Mounts(ctx context.Context, s Snapshot) ([]mount.Mount, error)

	// Find returns which tree mounts are of, if they are of this driver. They
	// come from clients: what is found is a claim and not a right.
	Find(mounts []mount.Mount) (Found, bool)

	// Extract returns where a layer for an active snapshot goes; alone, without
	// its parents. The caller calls done when the layer is in.
	Extract(ctx context.Context, s Snapshot, alone bool) (t layer.Target, done func() error, err error)

	// Tree opens the tree of any snapshot as a container sees it, with its
	// parents, to be read. It ends with the file.
	Tree(ctx context.Context, s Snapshot) (*os.File, error)

	// Commit makes the tree of the active snapshot s what it is to be for good,
	// and durable: that of the committed snapshot as, which has the same id, and
	// may have parents where s has none.
	Commit(ctx context.Context, s, as Snapshot) (snapshot.Usage, error)

	// Usage is what a snapshot occupies by itself, as of now; an error that is
	// [os.ErrNotExist] if it is gone.
	Usage(ctx context.Context, s Snapshot) (snapshot.Usage, error)

	// Remove removes a tree; one that is not there is fine.
	Remove(ctx context.Context, r Ref) error

	// IDs returns the trees that there are, whole or not.
	IDs(ctx context.Context) ([]uint64, error)

	// Has tells whether the tree of a snapshot is there.
	Has(ctx context.Context, s Snapshot) bool
}

// A Batcher is a driver that makes several trees durable at once.
type Batcher interface {
	// Settle is Commit but for the sync: nothing of it need be durable.
	Settle(ctx context.Context, s, as Snapshot) error

	// Sync makes every tree durable that was settled before.
	Sync() error
}

// A Layered driver keeps what a snapshot has beyond its parents in a directory,
// in the form of overlayfs.
type Layered interface {
	// Upper opens that directory, to be read: [errdefs.ErrNotImplemented] for a
	// snapshot that has none.
	Upper(s Snapshot) (*os.File, error)
}

// A Finisher keeps what a snapshot was committed from until the record of the
// commit is written: before, it may still be an active one that goes on.
type Finisher interface {
	// Finish removes what is left of the active snapshot from the tree of the
	// committed one that it became. With nothing left, it is quick.
	Finish(ctx context.Context, r Ref) error
}

// A Summer has a sum of its own for a committed tree, because there is no
// directory whose looks could be summed up.
type Summer interface {
	// Sum is the same as long as the tree is whole. An empty one says nothing.
	Sum(ctx context.Context, s Snapshot) (string, error)
}

// A Freezer lets nobody write to a tree from its commit on, also not whoever has
// it mounted.
type Freezer interface {
	// Thaw makes an active snapshot writable whose commit did not become true.
	// Like what changes its tree, it runs alone.
	Thaw(s Snapshot) error
}

// An Env is what drivers stand on.
type Env struct {
	Disk   Disk
	Kernel kernel.Kernel
	Log    *slog.Logger

	FreeMin int64 // bytes of free disk that are left alone
}
