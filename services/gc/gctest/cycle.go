package gctest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/lease"
)

func sweepsFrozen(r *run) {
	n := r.make(1, nil)
	refused := func(when string, epoch gc.Epoch) {
		r.Helper()
		swept, err := r.s.Sweep(r.Context(), epoch, []gc.Node{n})
		r.wantKind("Sweep "+when, err, errdefs.ErrFailedPrecondition)
		if swept != 0 {
			r.Errorf("swept %d %s", swept, when)
		}
		r.wantThere(true, n)
	}
	refused("without a cycle", 1)
	r.begin()
	refused("before Freeze", r.epoch)
	r.freeze(gc.HoldMax)
	refused("in another epoch", r.epoch+1)
	refused("in epoch 0", 0)
	r.end()
	refused("after End", r.epoch)
	r.begin()
	refused("in a new cycle", r.epoch)
	refused("in the cycle before", r.epoch-1)
}

func sweepsInTime(r *run) {
	n := r.make(1, nil)
	r.begin()
	_, deadline := r.freeze(200 * time.Millisecond)
	r.until(deadline)
	_, err := r.s.Sweep(r.Context(), r.epoch, []gc.Node{n})
	r.wantKind("Sweep", err, errdefs.ErrFailedPrecondition)
	r.wantThere(true, n)
}

func sweepsNodes(r *run) {
	n := r.make(1, nil)
	r.begin()
	r.freeze(gc.HoldMax)
	for _, bad := range []gc.Node{
		{},
		{Resource: n.Resource},
		{Namespace: "ns"},
		{Namespace: "ns", Resource: lease.Resource{Type: n.Type}},
		{Namespace: "ns", Resource: lease.Resource{Type: "leases", ID: "x"}},
		{Namespace: "ns", Resource: lease.Resource{Type: gc.TypeContainers, ID: "x"}},
		{Namespace: "ns", Resource: lease.Resource{Type: "snapshots/", ID: "x"}},
	} {
		swept, err := r.s.Sweep(r.Context(), r.epoch, []gc.Node{n, bad})
		r.wantKind(fmt.Sprintf("Sweep of %q", bad), err, errdefs.ErrInvalidArgument)
		if swept != 0 {
			r.Errorf("swept %d with %q", swept, bad)
		}
	}
	_, err := r.s.Sweep(r.Context(), r.epoch, slices.Repeat([]gc.Node{n}, gc.SweepMax+1))
	r.wantKind("Sweep of too many", err, errdefs.ErrInvalidArgument)
	r.wantThere(true, n)
	if n := r.sweep(); n != 0 {
		r.Errorf("swept %d of nothing", n)
	}
	if n := r.sweep(n, n); n != 1 {
		r.Errorf("swept %d of one that is named twice", n)
	}
}

// held does something that is held; when the deadline is over before it has
// ended, nothing is known.
func (r *run) held(what string, deadline gc.Instant, do func(context.Context) error) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), 20*time.Millisecond)
	defer cancel()
	if err := do(ctx); gc.Now() < deadline && !errors.Is(err, context.DeadlineExceeded) {
		r.Errorf("%s while writers are held: %v", what, err)
	}
}

func holdsWriters(r *run) {
	d := r.s.Driver
	n, gone := r.make(1, nil), r.make(2, nil)
	r.begin()
	_, deadline := r.freeze(gc.HoldMax)
	r.held("Make", deadline, func(ctx context.Context) error {
		_, err := d.Make(ctx, "ns", 3, nil)
		return err
	})
	r.held("Touch", deadline, func(ctx context.Context) error { return d.Touch(ctx, n) })
	r.held("Label", deadline, func(ctx context.Context) error { return d.Label(ctx, n, labels(gone)) })
	r.held("Join", deadline, func(ctx context.Context) error { return d.Join(ctx, n, lease.Ref{ID: "l", Generation: 1}) })
	r.must("Remove", d.Remove(r.Context(), gone))
	r.wantThere(true, n)
	if gc.Now() < deadline {
		r.wantThere(false, gone, d.Node("ns", 3))
	}
	r.end()
	r.begin()
	if o := r.mark()[n]; gc.Now() < deadline && (len(o.Refs) > 0 || len(o.Leases) > 0) {
		r.Errorf("what was held became true: %+v", o)
	}
}

func thaws(r *run) {
	r.begin()
	_, deadline := r.freeze(100 * time.Millisecond)
	n := r.make(1, nil)
	if early := deadline.Sub(gc.Now()); early > 0 {
		r.Errorf("made %v before the deadline", early)
	}
	r.wantThere(true, n)
}

func endThaws(r *run) {
	r.begin()
	r.freeze(gc.HoldMax)
	made := make(chan error, 1)
	go func() {
		_, err := r.s.Driver.Make(r.Context(), "ns", 1, nil)
		made <- err
	}()
	r.end()
	r.must("Make", <-made)
}

func freezesOnce(r *run) {
	r.wantKind("Freeze without a cycle", r.freezeErr(1, gc.Now().Add(time.Second)), errdefs.ErrFailedPrecondition)
	r.begin()
	r.wantKind("Freeze in another epoch", r.freezeErr(r.epoch+1, gc.Now().Add(time.Second)), errdefs.ErrFailedPrecondition)
	r.wantKind("Freeze until before", r.freezeErr(r.epoch, gc.Now()-1), errdefs.ErrFailedPrecondition)
	r.wantKind("Freeze until 0", r.freezeErr(r.epoch, 0), errdefs.ErrFailedPrecondition)
	r.wantKind("Freeze for too long", r.freezeErr(r.epoch, gc.Now().Add(gc.HoldMax+time.Minute)), errdefs.ErrInvalidArgument)
	r.make(1, nil) // nobody is held
	r.freeze(gc.HoldMax)
	r.wantKind("Freeze again", r.freezeErr(r.epoch, gc.Now().Add(time.Second)), errdefs.ErrFailedPrecondition)
	r.end()
	r.wantKind("Freeze after End", r.freezeErr(r.epoch, gc.Now().Add(time.Second)), errdefs.ErrFailedPrecondition)
	r.make(2, nil)
}

func epochsGrow(r *run) {
	r.wantKind("Begin of 0", r.s.Begin(r.Context(), 0), errdefs.ErrInvalidArgument)
	r.wantKind("Mark without a cycle", r.markErr(1), errdefs.ErrFailedPrecondition)
	r.must("Begin", r.s.Begin(r.Context(), 7))
	for _, epoch := range []gc.Epoch{1, 6, 7} {
		r.wantKind(fmt.Sprintf("Begin of %d after 7", epoch), r.s.Begin(r.Context(), epoch), errdefs.ErrFailedPrecondition)
	}
	r.must("End", r.s.End(r.Context(), 7))
	r.wantKind("Begin of 7 again", r.s.Begin(r.Context(), 7), errdefs.ErrFailedPrecondition)
	r.wantKind("Mark after End", r.markErr(7), errdefs.ErrFailedPrecondition)
	r.must("Begin", r.s.Begin(r.Context(), 1<<63))
	r.must("Mark", r.markErr(1<<63))
}

func newerEnds(r *run) {
	n := r.make(1, nil)
	r.begin()
	_, deadline := r.freeze(time.Second)
	r.begin()
	if early := deadline.Sub(gc.Now()); early > 0 {
		r.Errorf("begun %v before writers may be let in", early)
	}
	old := r.epoch - 1
	_, err := r.s.Sweep(r.Context(), old, []gc.Node{n})
	r.wantKind("Sweep of the older", err, errdefs.ErrFailedPrecondition)
	r.wantKind("Freeze of the older", r.freezeErr(old, gc.Now().Add(time.Second)), errdefs.ErrFailedPrecondition)
	r.wantKind("Mark of the older", r.markErr(old), errdefs.ErrFailedPrecondition)
	r.must("End of the older", r.s.End(r.Context(), old))
	r.wantThere(true, n)
	r.freeze(gc.HoldMax)
	if swept := r.sweep(n); swept != 1 {
		r.Errorf("swept %d", swept)
	}
}

func endsTwice(r *run) {
	r.must("End", r.s.End(r.Context(), 5))
	r.must("End", r.s.End(r.Context(), 0))
	r.begin()
	r.freeze(gc.HoldMax)
	r.end()
	r.end()
	r.begin()
}

func restarts(r *run) {
	if r.s.Restart == nil {
		return
	}
	n := r.make(1, nil)
	r.begin()
	_, deadline := r.freeze(gc.HoldMax)
	r.s = r.s.Restart()
	r.held("Make", deadline, func(ctx context.Context) error {
		_, err := r.s.Driver.Make(ctx, "ns", 2, nil)
		return err
	})
	_, err := r.s.Sweep(r.Context(), r.epoch, []gc.Node{n})
	r.wantKind("Sweep", err, errdefs.ErrFailedPrecondition)
	r.wantKind("Mark", r.markErr(r.epoch), errdefs.ErrFailedPrecondition)
	r.must("End", r.s.End(r.Context(), r.epoch))
	r.wantThere(true, n)
	r.make(3, nil)
	if early := deadline.Sub(gc.Now()); early > 0 {
		r.Errorf("made %v before the deadline", early)
	}
	r.begin()
	r.freeze(gc.HoldMax)
	if swept := r.sweep(n); swept != 1 {
		r.Errorf("swept %d", swept)
	}
}

func callersGo(r *run) {
	gone, cancel := context.WithCancel(r.Context())
	cancel()
	n := r.make(1, nil)
	r.wantKind("Begin", r.s.Begin(gone, 1), context.Canceled)
	r.epoch = 1
	r.begin()
	for _, err := range r.s.Freeze(gone, r.epoch, gc.Now().Add(time.Second)) {
		r.wantKind("Freeze", err, context.Canceled)
	}
	r.make(2, nil) // nobody is held
	r.freeze(gc.HoldMax)
	_, err := r.s.Sweep(gone, r.epoch, []gc.Node{n})
	r.wantKind("Sweep", err, context.Canceled)
	r.wantThere(true, n)
}

// besideWriters collects while clients make chains of objects under leases of
// their own, and look at them as long as the leases live.
func besideWriters(r *run) {
	var leases leaseSet
	c := &Coordinator{Owners: []gc.Owner{r.s.Owner}, Leases: leases.all, Now: gc.Now, Epoch: r.epoch}
	ctx, cancel := context.WithTimeout(r.Context(), 1500*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 4 {
		seed := rand.Uint64()
		wg.Go(func() {
			w := &client{run: r, leases: &leases, rnd: rand.New(rand.NewPCG(seed, 0)), from: i * 100}
			if err := w.work(ctx); err != nil && !over(ctx, err) {
				r.Errorf("seed %d: %v", seed, err)
			}
		})
	}
	cycles, swept := 0, 0
	for ctx.Err() == nil {
		n, err := c.Cycle(ctx)
		if err != nil && !over(ctx, err) && !errors.Is(err, errdefs.ErrFailedPrecondition) {
			r.Errorf("cycle: %v", err)
		}
		cycles, swept = cycles+1, swept+n
	}
	wg.Wait()
	r.Logf("%d cycles removed %d objects", cycles, swept)
	// Garbage goes, in two quiet cycles. A call that its caller gave up may be
	// under way yet.
	leases.clear()
	for quiet, tries := 0, 0; quiet < 2; tries++ {
		_, err := c.Cycle(r.Context())
		if errors.Is(err, errdefs.ErrFailedPrecondition) && tries < 100 {
			continue
		}
		r.must("Cycle", err)
		quiet++
	}
	r.epoch = c.Epoch
	r.begin()
	for n, o := range r.mark() {
		// What a client left half done is one for a while.
		if !o.Root {
			r.Errorf("garbage stays: %v", n)
		}
	}
}

// over says whether err is of the end of ctx, which the other end of a socket may
// be the first to say.
func over(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded)
}

// A leaseSet is what imaged knows.
type leaseSet struct {
	// mu guards the fields below it.
	mu   sync.Mutex
	next uint64
	live []lease.Ref
}

func (s *leaseSet) create() lease.Ref {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	l := lease.Ref{ID: "l", Generation: s.next}
	s.live = append(s.live, l)
	return l
}

func (s *leaseSet) remove(l lease.Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live = slices.DeleteFunc(s.live, func(o lease.Ref) bool { return o == l })
}

func (s *leaseSet) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live = nil
}

func (s *leaseSet) all() map[string][]lease.Ref {
	s.mu.Lock()
	defer s.mu.Unlock()
	return map[string][]lease.Ref{"ns": slices.Clone(s.live)}
}

// A client builds chains, under a lease, of objects that it may find.
type client struct {
	*run
	leases *leaseSet
	rnd    *rand.Rand
	from   int
}

func (c *client) work(ctx context.Context) error {
	for ctx.Err() == nil {
		l := c.leases.create()
		if err := c.chain(ctx, l); err != nil {
			return err
		}
		c.leases.remove(l)
	}
	return nil
}

// chain makes a few objects, of which only the last is in the lease and refers
// to those before.
func (c *client) chain(ctx context.Context, l lease.Ref) error {
	d := c.s.Driver
	var all []gc.Node
	refs := map[string]string{}
	for i := range 1 + c.rnd.IntN(3) {
		n, err := c.leased(ctx, c.from+c.rnd.IntN(3)*10+i, l)
		if err == nil {
			err = d.Touch(ctx, n)
		}
		if err != nil {
			return err
		}
		all = append(all, n)
		refs["containerd.io/gc.ref."+typeLabel(n, i)] = n.ID
	}
	top, err := c.leased(ctx, c.from+99, l)
	if err == nil {
		err = d.Label(ctx, top, refs)
	}
	if err != nil {
		return err
	}
	for range 3 {
		for _, n := range append(all, top) {
			has, err := d.Has(ctx, n)
			if err != nil {
				return err
			}
			if !has {
				return fmt.Errorf("%v is gone", n)
			}
		}
	}
	return nil
}

// leased makes an object that is a member before it is there.
func (c *client) leased(ctx context.Context, i int, l lease.Ref) (gc.Node, error) {
	if err := c.s.Driver.Join(ctx, c.s.Driver.Node("ns", i), l); err != nil {
		return gc.Node{}, err
	}
	return c.s.Driver.Make(ctx, "ns", i, nil)
}

func cutSnapshotter(t string) (string, bool) { return strings.CutPrefix(t, lease.TypeSnapshots+"/") }
