package gctest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

const (
	simCount = "GC_SIMULATIONS" // how many to run, instead of a few
	simSeed  = "GC_SEED"        // the one to run
	simSteps = 300
)

// A Site is the owner that a simulation is of, and its clients. Its objects are
// those with an even number, in the namespace "one".
type Site interface {
	// A Driver makes them. [errdefs.ErrNotImplemented] is of what cannot be done
	// with an object, ever.
	Driver

	// Owner is the owner, as it is now.
	Owner() gc.Owner
	// Tell tells in a scope that an object exists, which joins its lease.
	Tell(ctx context.Context, k int, scope namespace.Scope) error
	// DropMembers ends the memberships of a lease that is no more.
	DropMembers(ctx context.Context, l lease.Ref) error
	// Crash ends the process at once, and starts another.
	Crash()
	// Moves are what its clients do beside what those of every owner do.
	Moves() []Move
	// Check compares the owner with what clients were told, beyond that its
	// objects are there.
	Check()
	// Quiet ends what clients are doing.
	Quiet()
	// End is the last look, at what has to be there and at what is left.
	End(needed map[int]bool)
}

// A Move is something that a client does, so often as it has weight. If writers
// are held, by the site for its own moves, what Do writes is refused, see
// [World.Refused]. k is the number of any object.
type Move struct {
	Weight int
	Do     func(ctx context.Context, held bool, k int)
}

// Simulate simulates clients, a coordinator, two owners, their crashes, and calls
// that are lost, late or heard twice, one step at a time as a seed says. No object
// goes that a root, a lease or another object needs; nothing that is there lacks
// what it refers to; and what nobody needs is gone after two quiet cycles.
//
// As many are run as few says, or the environment.
func Simulate(t *testing.T, getenv func(string) string, few int, open func(w *World) Site) {
	count, first := few, rand.Uint64()>>1
	if n, err := strconv.Atoi(getenv(simCount)); err == nil {
		count = n
	}
	if seed, err := strconv.ParseUint(getenv(simSeed), 10, 64); err == nil {
		count, first = 1, seed
	}
	for i := range count {
		seed := first + uint64(i) //nolint:gosec // a count is not negative
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			simulate(t, seed, open)
		})
	}
}

func simulate(t *testing.T, seed uint64, open func(w *World) Site) {
	w := &World{T: t, Rand: rand.New(rand.NewPCG(seed, 0)), Model: newModel(), now: 1 << 50}
	defer func() {
		if t.Failed() {
			t.Logf("%s=%d\n%s", simSeed, seed, strings.Join(w.trace, "\n"))
		}
	}()
	w.memory = NewMemory("snapshots/sim", w.Clock)
	w.site = open(w)
	w.moves = w.commonMoves()
	w.common = len(w.moves)
	w.moves = append(w.moves, w.site.Moves()...)
	for _, m := range w.moves {
		w.weight += m.Weight
	}
	w.c = &Coordinator{
		Owners: []gc.Owner{&lossy{w: w, at: 0}, &lossy{w: w, at: 1}},
		Leases: w.leases, Now: w.Clock,
	}
	for range simSteps {
		w.step()
		w.check()
		if t.Failed() {
			return
		}
	}
	w.quiet()
}

// A World is what a simulation has.
type World struct {
	*testing.T
	Rand  *rand.Rand
	Model Model

	now    gc.Instant
	site   Site
	memory *Memory
	moves  []Move
	common int // how many of them are not the site's
	weight int // of all

	c       *Coordinator
	program []func(context.Context) error // of the cycle that goes on
	held    [2]gc.Instant                 // until when the owners hold writers
	kept    [2]gc.Instant                 // until when they do after a crash
	frozen  [2]gc.Epoch
	away    [2]gc.Instant           // until when nobody reaches the owners
	heard   []func(context.Context) // calls that may be heard once more
	calm    bool                    // nothing is lost

	trace []string
}

// Clock is the time in the simulation.
func (w *World) Clock() gc.Instant { return w.now }

// Say notes what was done, for who reads why it failed.
func (w *World) Say(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

// Must ends a simulation that has an error.
func (w *World) Must(what string, err error) {
	w.Helper()
	if err != nil {
		w.Fatalf("%s: %v", what, err)
	}
}

// Refused wants an error of who is held.
func (w *World) Refused(what string, err error) {
	w.Helper()
	if !errors.Is(err, context.DeadlineExceeded) {
		w.Errorf("%s while writers are held: %v", what, err)
	}
}

// Held says whether the site holds writers.
func (w *World) Held() bool { return w.now < w.held[0] }

// Lookup implements [lease.Registry], for the site.
func (w *World) Lookup(_ context.Context, scope namespace.Scope) (lease.Ref, error) {
	if scope.Lease == "" {
		return lease.Ref{}, nil
	}
	if l, ok := w.Model.Live[scope.Lease]; ok {
		return l, nil
	}
	return lease.Ref{}, fmt.Errorf("lease does not exist: %w", errdefs.ErrNotFound)
}

func (w *World) leases() map[string][]lease.Ref {
	return map[string][]lease.Ref{"one": slices.Collect(maps.Values(w.Model.Live))}
}

func (w *World) driver(k int) Driver {
	if k%2 == 1 {
		return w.memory
	}
	return w.site
}

// Name is the object with the number k.
func (w *World) Name(k int) gc.Node { return w.driver(k).Node("one", k) }

// Pick makes up an object with the number k, and its labels.
func (w *World) Pick(k int) (*Thing, map[string]string) { return w.Model.pick(w.Rand, k, w.Name) }

// Scope is one with or without a lease that exists.
func (w *World) Scope() namespace.Scope {
	ids := slices.Sorted(maps.Keys(w.Model.Live))
	if len(ids) == 0 || w.Rand.IntN(4) == 0 {
		return namespace.Scope{Name: "one"}
	}
	return namespace.Scope{Name: "one", Lease: ids[w.Rand.IntN(len(ids))]}
}

// step is one of anybody's: of five, two are the coordinator's.
func (w *World) step() {
	if w.Rand.IntN(5) < 2 {
		w.coordinate()
		return
	}
	n, k, i := w.Rand.IntN(w.weight), w.Rand.IntN(SimObjects), 0
	for n >= w.moves[i].Weight {
		n -= w.moves[i].Weight
		i++
	}
	if doomed := w.Model.doomed(); len(doomed) > 0 && w.Rand.IntN(2) == 0 {
		// What happens to these decides.
		k = doomed[w.Rand.IntN(len(doomed))]
	}
	at := k % 2
	if i >= w.common {
		at = 0
	}
	ctx, cancel := context.WithTimeout(w.Context(), 30*time.Second)
	defer cancel()
	held := w.now < w.held[at]
	if held {
		// Whoever writes waits, and has changed nothing when it gives up.
		cancel()
		ctx, cancel = context.WithTimeout(w.Context(), time.Millisecond)
		defer cancel()
	}
	w.moves[i].Do(ctx, held, k)
}

// commonMoves are those that there are with every owner.
func (w *World) commonMoves() []Move {
	alone := func(do func()) func(context.Context, bool, int) {
		return func(context.Context, bool, int) { do() }
	}
	return []Move{
		{8, w.make},
		{5, w.label},
		{6, w.tell},
		{6, w.join},
		{4, alone(w.lease)},
		{6, alone(w.unlease)},
		{3, func(_ context.Context, _ bool, k int) { w.remove(k) }},
		{1, alone(w.crash)},
		{3, alone(w.late)},
		{5, alone(w.pass)},
	}
}

// did says whether a call has changed anything; a call that cannot be made, or is
// refused as it has to be, has not.
func (w *World) did(what string, held bool, err error) bool {
	w.Helper()
	switch {
	case errors.Is(err, errdefs.ErrNotImplemented):
		return false
	case held:
		w.Refused(what, err)
		return false
	}
	w.Must(what, err)
	return true
}

func (w *World) make(ctx context.Context, held bool, k int) {
	o, labels := w.Pick(k)
	_, err := w.driver(k).Make(ctx, "one", k, labels)
	w.Say("make %d %v: %v", k, labels, err)
	if w.did("Make", held, err) {
		w.Model.Made(k, o)
	}
}

func (w *World) label(ctx context.Context, held bool, k int) {
	was := w.Model.Objects[k]
	if was == nil {
		return
	}
	o, labels := w.Pick(k)
	err := w.driver(k).Label(ctx, w.Name(k), labels)
	w.Say("label %d %v: %v", k, labels, err)
	if w.did("Label", held, err) {
		w.Model.On(o, was.Parent)
		w.Model.Objects[k] = o
	}
}

// tell has somebody be told that an object exists.
func (w *World) tell(ctx context.Context, held bool, k int) {
	if w.Model.Objects[k] == nil {
		return
	}
	if k%2 == 1 {
		err := w.memory.Touch(ctx, w.Name(k))
		w.Say("touch %d: %v", k, err)
		w.did("Touch", held, err)
		return
	}
	scope := w.Scope()
	err := w.site.Tell(ctx, k, scope)
	w.Say("tell of %d in lease %q: %v", k, scope.Lease, err)
	if w.did("Tell", held, err) {
		w.Model.Joined(k, w.Model.Live[scope.Lease])
	}
}

func (w *World) join(ctx context.Context, held bool, k int) {
	scope := w.Scope()
	if scope.Lease == "" {
		return
	}
	l := w.Model.Live[scope.Lease]
	err := w.driver(k).Join(ctx, w.Name(k), l)
	w.Say("join %d to %v: %v", k, l, err)
	if w.did("Join", held, err) {
		w.Model.Joined(k, l)
	}
}

func (w *World) lease() {
	id := fmt.Sprintf("l%d", w.Rand.IntN(4))
	if _, ok := w.Model.Live[id]; ok {
		return
	}
	w.Model.last++
	w.Model.Live[id] = lease.Ref{ID: id, Generation: w.Model.last}
	w.Say("lease %v", w.Model.Live[id])
}

func (w *World) unlease() {
	id := fmt.Sprintf("l%d", w.Rand.IntN(4))
	l := w.Model.Live[id]
	delete(w.Model.Live, id)
	w.Say("end of lease %v", l)
	if l.ID == "" || w.Rand.IntN(2) == 0 {
		return
	}
	w.Must("DropMembers", w.site.DropMembers(w.Context(), l))
	for k, members := range w.Model.Members {
		if k%2 == 0 {
			delete(members, l)
		}
	}
}

// remove deletes an object, if nothing is built on it.
func (w *World) remove(k int) {
	if w.Model.Objects[k] == nil {
		return
	}
	err := w.driver(k).Remove(w.Context(), w.Name(k))
	w.Say("remove %d: %v", k, err)
	if w.Model.hasChild(k) {
		if !errors.Is(err, errdefs.ErrFailedPrecondition) {
			w.Errorf("remove %d, which has a child: %v", k, err)
		}
		return
	}
	w.Must("Remove", err)
	w.Model.Removed(k)
}

func (w *World) crash() {
	at := w.Rand.IntN(2)
	w.Say("crash of owner %d", at)
	w.Crashed(at)
	if at == 0 {
		w.site.Crash()
	} else {
		w.memory.Restart()
	}
}

// Crashed is told of an owner that ends: what was ended before is held again, as
// that it was is not durable. It may be away for a while.
func (w *World) Crashed(at int) {
	w.held[at], w.frozen[at] = w.kept[at], 0
	if w.Rand.IntN(3) == 0 {
		w.away[at] = w.now.Add(time.Duration(w.Rand.Int64N(int64(gc.HoldMax))))
	}
}

// late has a call be heard that was made before.
func (w *World) late() {
	if len(w.heard) > 0 {
		w.Say("a late call")
		w.heard[w.Rand.IntN(len(w.heard))](w.Context())
	}
}

func (w *World) pass() {
	d := time.Duration(w.Rand.Int64N(int64(gc.HoldMax)))
	w.Say("%v pass", d)
	w.now = w.now.Add(d)
}
