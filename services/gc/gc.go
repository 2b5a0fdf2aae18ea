// Package gc is the contract between the daemons that own objects and the one
// that finds out which of them nobody refers to.
//
// Objects of one owner refer to those of another, and leases protect some, so
// that no owner can know by itself what is garbage. imaged coordinates: it asks
// every [Owner] for its part of the graph, colours it, and tells each what is
// dead. Writers go on meanwhile, but for the moment between Freeze and End.
//
// # The cycle
//
//  1. Begin, to every owner. From then on it notes each object that is created,
//     touched, newly referred to, or that newly refers to another. "It already
//     exists" is a touch; a new member of a lease, and labels that change, are
//     noted too.
//  2. The coordinator reads which leases exist, and has every owner Mark: all
//     its objects, with what they refer to, what keeps them, and the leases
//     they belong to. No owner holds a lock or a transaction meanwhile.
//  3. Freeze, to every owner, with one deadline for all. An owner holds its
//     writers and returns what it noted, as it now is.
//  4. The coordinator replaces what it marked by what was noted and colours:
//     from what is a root by itself, from what was noted, from the members of
//     leases that exist and have not expired. What stays white is dead. Most of
//     that can be done before: what was noted keeps more, and never less.
//  5. Sweep, to the owners of the dead, before the deadline.
//  6. End, to every owner.
//
// # Why nothing that is referred to goes
//
// Take the moment at which the last owner had frozen. What an owner has then was
// either noted since Begin, and is known as it is; or has not changed since
// Begin, so that Mark, which came later, has seen it as it is. What was deleted
// meanwhile is known too much of, which keeps too much and never too little. So
// the coordinator knows all that is referred to at that moment.
//
// Until the last owner has swept, nothing more is referred to: every owner holds
// its writers until the deadline, or until End, which is not sent before every
// Sweep was answered; and no Sweep begins past the deadline. It is an [Instant],
// read from one clock that all processes of the node share and nobody sets. An
// owner that is sweeping when the deadline passes has already hidden what it is
// about to remove, so that nobody who comes later can have seen it. An owner
// that starts again while its writers were held goes on to hold them until the
// deadline: it has made that durable before it froze.
//
// Whatever goes wrong removes nothing: an owner that is missing, late or was
// started again, one whose notes were too many, a newer cycle. The coordinator
// then ends the cycle everywhere and begins another later.
//
// # What the coordinator owes
//
//   - Epochs grow, also across its restarts.
//   - Leases are read when every Begin was answered: whatever becomes a member
//     of one that is made later is noted.
//   - It ends the cycle, and removes nothing, unless every owner that there is
//     answered Begin, Mark and Freeze.
//   - The dead are sent in an order in which what refers comes before what it
//     refers to, also from one owner to the next. Whatever part of a sweep is
//     done, what is left of the dead then lacks nothing that it refers to. The
//     order within a circle does not matter.
//   - If a Sweep was not answered, nobody is told End before the deadline.
//
// # What the owner owes
//
//   - Writers are held outside of every lock that Freeze and Sweep want, and
//     nobody waits for another daemon while it is let in.
//   - A note is made no later than the change that it is of can be seen, and by
//     a writer that is let in. [Gate] does that part.
//   - Deletes go on at any time; they are never noted.
//   - No event for content that is swept, as containerd has none.
package gc

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/lease"
)

// The types of nodes that a client cannot put under a lease; the others are those
// of package lease. Containers and sandboxes refer and are never swept. Mounts are
// activations: those that are made under a lease are its own, and nobody is told.
const (
	TypeContainers = "containers"
	TypeSandboxes  = "sandboxes"
	TypeMounts     = "mounts"
)

const (
	// HoldMax is how long writers are held at most.
	HoldMax = 2 * time.Second

	// NotesMax is how many notes an owner keeps at most. A cycle that has more
	// is over.
	NotesMax = 100_000

	// CycleMax is how long after Begin a cycle is over that was not frozen.
	CycleMax = 10 * time.Minute

	// SweepMax is how many nodes one Sweep takes at most.
	SweepMax = 10_000
)

// An Epoch is the number of a cycle, from 1.
type Epoch uint64

// An Instant is a point in time by a clock that all processes of a node share,
// that only goes forward, and that nobody sets. See [Now].
type Instant int64

// Add returns the instant d later.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d) }

// Sub returns how much later i is than o.
func (i Instant) Sub(o Instant) time.Duration { return time.Duration(i - o) }

// A Node names an object of a node of the suite for good.
type Node struct {
	Namespace string
	lease.Resource
}

// String is the node in the words of logs and errors.
func (n Node) String() string { return n.Namespace + " " + n.Type + " " + n.ID }

// Compare orders nodes by namespace, type and id.
func (n Node) Compare(o Node) int {
	return cmp.Or(strings.Compare(n.Namespace, o.Namespace), n.Resource.Compare(o.Resource))
}

// Check is [errdefs.ErrInvalidArgument] for a node without a namespace or an
// id, or of a type that there is not.
func (n Node) Check() error {
	if n.Namespace == "" || n.ID == "" {
		return fmt.Errorf("node %q wants a namespace and an id: %w", n, errdefs.ErrInvalidArgument)
	}
	if n.Type == TypeContainers || n.Type == TypeSandboxes || n.Type == TypeMounts {
		return nil
	}
	if err := n.Resource.Check(); err != nil {
		return fmt.Errorf("node %q: %v: %w", n, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// An Object is a node with all that decides about it and others. What it names
// is in its own namespace, and may not exist.
type Object struct {
	Node
	Size int64 // bytes; 0 where it is not known

	Root   bool             // it keeps itself
	Refs   []lease.Resource // what it keeps
	Backs  []lease.Resource // what keeps it: any of them
	Conds  []Condition      // what keeps it, if that meets a condition
	Leases []lease.Ref      // that it is a member of, whether they exist or not

	// UsedAt is what others' conditions ask of it, as it was written; empty if
	// nothing was.
	UsedAt string
}

// An Owner is the collector's side of a daemon that owns objects.
//
// There is one cycle at a time. Any epoch but the one that was begun last is
// [errdefs.ErrFailedPrecondition] from Mark, Freeze and Sweep, and so is every
// epoch from before a restart of the owner. Methods may be called from any
// goroutine; Begin, Freeze, Sweep and End wait for each other.
type Owner interface {
	// Begin starts a cycle: from its return on everything is noted. An older
	// cycle is over then, and writers that it held are held until its deadline.
	// An epoch that is not newer than all before is
	// [errdefs.ErrFailedPrecondition], and 0 is [errdefs.ErrInvalidArgument].
	Begin(ctx context.Context, epoch Epoch) error

	// Mark yields every object that is there from the call to the end, and any
	// that comes or goes meanwhile or not. It ends with an error if the cycle
	// does. A record that cannot be read is [errdefs.ErrDataLoss]: nobody knows
	// what it refers to.
	Mark(ctx context.Context, epoch Epoch) iter.Seq2[Object, error]

	// Freeze holds writers until End, or until the deadline, and then yields
	// what was noted since Begin and is there, as it is. Writers are held if it
	// yields no error. It is [errdefs.ErrFailedPrecondition] for a deadline that
	// has passed, or that the writers who are let in did not meet; in a cycle
	// that is frozen already; and if there were more than NotesMax notes. A
	// deadline more than HoldMax ahead is [errdefs.ErrInvalidArgument].
	Freeze(ctx context.Context, epoch Epoch, deadline Instant) iter.Seq2[Object, error]

	// Sweep removes the dead in their order and returns how many it removed;
	// their bytes go later. What is not there, what is a root by itself, and
	// what was noted in this cycle is passed over. Sweep is
	// [errdefs.ErrFailedPrecondition] unless the owner is frozen in this epoch
	// and the deadline has not passed; if it passes meanwhile, a part has been
	// removed, from the beginning. More than SweepMax nodes, or one that fails
	// [Node.Check] or that the owner does not keep, are
	// [errdefs.ErrInvalidArgument], and nothing is removed. Every other error
	// may have removed a part too. It can be called again until End.
	Sweep(ctx context.Context, epoch Epoch, dead []Node) (int, error)

	// End lets writers in and forgets the cycle. Once it has returned no Sweep
	// of the epoch removes anything. It is fine if the epoch is over or never
	// was.
	End(ctx context.Context, epoch Epoch) error
}
