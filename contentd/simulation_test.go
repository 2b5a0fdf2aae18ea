package contentd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/gc/gctest"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

const (
	simCount = "CONTENTD_TEST_SIMULATIONS" // how many to run, instead of a few
	simSeed  = "CONTENTD_TEST_SEED"        // the one to run
	simSteps = 200
)

// TestNothingThatIsReferredToGoes simulates clients, a coordinator, two owners,
// their crashes, and calls that are lost, late or heard twice, one step at a
// time as a seed says. No object goes that a root, a lease or another object
// needs; nothing that is there lacks what it refers to; and what nobody needs is
// gone after two quiet cycles.
func TestNothingThatIsReferredToGoes(t *testing.T) {
	count, first := 25, rand.Uint64()>>1
	if n, err := strconv.Atoi(os.Getenv(simCount)); err == nil {
		count = n
	}
	if seed, err := strconv.ParseUint(os.Getenv(simSeed), 10, 64); err == nil {
		count, first = 1, seed
	}
	for i := range count {
		seed := first + uint64(i)
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			simulate(t, seed)
		})
	}
}

func simulate(t *testing.T, seed uint64) {
	w := &world{
		T: t, rnd: rand.New(rand.NewPCG(seed, 0)), cfg: testConfig(t), model: newSimModel(),
		now: 1 << 50, writers: map[int]*simWriter{}, left: map[int]map[lease.Ref]bool{},
	}
	defer os.RemoveAll(w.cfg.Root)
	defer func() {
		if t.Failed() {
			t.Logf("%s=%d\n%s", simSeed, seed, strings.Join(w.trace, "\n"))
		}
	}()
	w.memory = gctest.NewMemory("snapshots/sim", w.clock)
	w.c = &gctest.Coordinator{
		Owners: []gc.Owner{&lossy{w: w, at: 0}, &lossy{w: w, at: 1}},
		Leases: w.leases, Now: w.clock,
	}
	w.start()
	for range simSteps {
		w.step()
		w.check()
		if t.Failed() {
			break
		}
	}
	w.quiet()
	closeStore(t, w.store)
}

// A world is what a simulation has.
type world struct {
	*testing.T
	rnd     *rand.Rand
	now     gc.Instant
	cfg     Config
	store   *Store
	memory  *gctest.Memory
	model   simModel
	writers map[int]*simWriter
	left    map[int]map[lease.Ref]bool // ingests that were left, and the leases they joined

	c       *gctest.Coordinator
	program []func(context.Context) error // of the cycle that goes on
	held    [2]gc.Instant                 // until when the owners hold writers
	kept    [2]gc.Instant                 // until when they do after a crash
	frozen  [2]gc.Epoch
	heard   []func(context.Context) // calls that may be heard once more
	calm    bool                    // nothing is lost

	trace []string
}

type simWriter struct {
	content.Writer
	lease   lease.Ref   // when it was opened
	dropped []lease.Ref // since
}

func (w *world) clock() gc.Instant { return w.now }

func (w *world) say(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

func (w *world) must(what string, err error) {
	w.Helper()
	if err != nil {
		w.Fatalf("%s: %v\n%s", what, err, strings.Join(w.trace, "\n"))
	}
}

// start opens contentd, as a new process does.
func (w *world) start() {
	s, err := Open(w.cfg, Needs{Leases: w})
	w.must("Open", err)
	s.gate = gc.NewGate(w.clock)
	s.db.Gate = s.gate
	w.must("Resume", s.db.Resume())
	w.store = s
}

func (w *world) kill() {
	w.must("Close", w.store.kv.Close())
	for k, sw := range w.writers {
		sw.Writer.(*writer).closeFile()
		delete(w.writers, k)
	}
	w.start()
}

// Lookup answers for imaged.
func (w *world) Lookup(_ context.Context, scope namespace.Scope) (lease.Ref, error) {
	if l, ok := w.model.live[scope.Lease]; ok {
		return l, nil
	}
	return lease.Ref{}, fmt.Errorf("lease does not exist: %w", errdefs.ErrNotFound)
}

func (w *world) leases() map[string][]lease.Ref {
	return map[string][]lease.Ref{"one": slices.Collect(maps.Values(w.model.live))}
}

func (w *world) driver(k int) gctest.Driver {
	if k%2 == 1 {
		return w.memory
	}
	return gcClient{w.store}
}

func (w *world) name(k int) gc.Node { return w.driver(k).Node("one", k) }

// step is one of anybody's.
func (w *world) step() {
	k := w.rnd.IntN(simObjects)
	ctx, cancel := context.WithTimeout(w.Context(), 30*time.Second)
	defer cancel()
	held := w.now < w.held[k%2]
	if held {
		// Whoever writes waits, and has changed nothing when it gives up.
		cancel()
		ctx, cancel = context.WithTimeout(w.Context(), time.Millisecond)
		defer cancel()
	}
	switch n := w.rnd.IntN(100); {
	case n < 40:
		w.coordinate()
	case n < 48:
		w.make(ctx, held, k)
	case n < 53:
		w.label(ctx, held, k)
	case n < 59:
		w.touch(ctx, held, k)
	case n < 65:
		w.join(ctx, held, k)
	case n < 69:
		w.lease()
	case n < 73:
		w.unlease()
	case n < 76:
		w.remove(k)
	case n < 80:
		w.open(ctx, held, k)
	case n < 86:
		w.finish(k)
	case n < 89:
		w.store.sweep(w.Context())
	case n < 92:
		w.crash()
	case n < 95 && len(w.heard) > 0:
		w.say("a late call")
		w.heard[w.rnd.IntN(len(w.heard))](w.Context())
	default:
		d := time.Duration(w.rnd.Int64N(int64(gc.HoldMax)))
		w.say("%v pass", d)
		w.now = w.now.Add(d)
	}
}

// refused wants an error of who is held.
func (w *world) refused(what string, err error) {
	w.Helper()
	if !errors.Is(err, context.DeadlineExceeded) {
		w.Errorf("%s while writers are held: %v", what, err)
	}
}

func (w *world) make(ctx context.Context, held bool, k int) {
	o, labels := w.model.pick(w.rnd, k, w.name)
	_, err := w.driver(k).Make(ctx, "one", k, labels)
	w.say("make %d %v: %v", k, labels, err)
	if held {
		w.refused("Make", err)
		return
	}
	w.must("Make", err)
	w.model.made(k, o)
}

func (w *world) label(ctx context.Context, held bool, k int) {
	if w.model.objects[k] == nil {
		return
	}
	o, labels := w.model.pick(w.rnd, k, w.name)
	err := w.driver(k).Label(ctx, w.name(k), labels)
	w.say("label %d %v: %v", k, labels, err)
	if held {
		w.refused("Label", err)
		return
	}
	w.must("Label", err)
	w.model.objects[k] = o
}

// touch is told that a blob exists, and joins a lease with that, if there is
// one.
func (w *world) touch(ctx context.Context, held bool, k int) {
	if w.model.objects[k] == nil {
		return
	}
	if k%2 == 1 {
		err := w.memory.Touch(ctx, w.name(k))
		w.say("touch %d: %v", k, err)
		if held {
			w.refused("Touch", err)
		}
		return
	}
	scope := w.scope()
	_, err := w.store.In(scope).Writer(ctx, content.WriterOptions{Ref: "touch", Expected: digest.Digest(w.name(k).ID)})
	w.say("touch %d of lease %q: %v", k, scope.Lease, err)
	switch {
	case held:
		w.refused("Writer", err)
	case !errors.Is(err, errdefs.ErrAlreadyExists):
		w.Errorf("touch %d: %v", k, err)
	case scope.Lease != "":
		w.model.joined(k, w.model.live[scope.Lease])
	}
}

// scope is one with or without a lease that exists.
func (w *world) scope() namespace.Scope {
	ids := slices.Sorted(maps.Keys(w.model.live))
	if len(ids) == 0 || w.rnd.IntN(4) == 0 {
		return one
	}
	return namespace.Scope{Name: "one", Lease: ids[w.rnd.IntN(len(ids))]}
}

func (w *world) join(ctx context.Context, held bool, k int) {
	scope := w.scope()
	if scope.Lease == "" {
		return
	}
	l := w.model.live[scope.Lease]
	err := w.driver(k).Join(ctx, w.name(k), l)
	w.say("join %d to %v: %v", k, l, err)
	if held {
		w.refused("Join", err)
		return
	}
	w.must("Join", err)
	w.model.joined(k, l)
}

func (w *world) lease() {
	id := fmt.Sprintf("l%d", w.rnd.IntN(4))
	if _, ok := w.model.live[id]; ok {
		return
	}
	w.model.last++
	w.model.live[id] = lease.Ref{ID: id, Generation: w.model.last}
	w.say("lease %v", w.model.live[id])
}

func (w *world) unlease() {
	id := fmt.Sprintf("l%d", w.rnd.IntN(4))
	l := w.model.live[id]
	delete(w.model.live, id)
	w.say("end of lease %v", l)
	if l.ID == "" || w.rnd.IntN(2) == 0 {
		return
	}
	w.must("DropMembers", w.store.DropMembers(w.Context(), "one", l))
	for _, sw := range w.writers {
		sw.dropped = append(sw.dropped, l)
	}
	for k, members := range w.model.members {
		if k%2 == 0 {
			delete(members, l)
		}
	}
}

func (w *world) remove(k int) {
	if w.model.objects[k] == nil {
		return
	}
	w.say("remove %d", k)
	w.must("Remove", w.driver(k).Remove(w.Context(), w.name(k)))
	w.model.removed(k)
}

// open begins to write a blob, which it does not name.
func (w *world) open(ctx context.Context, held bool, k int) {
	if k%2 == 1 || w.writers[k] != nil {
		return
	}
	ref := content.WriterOptions{Ref: fmt.Sprintf("w%d", k)}
	if held && w.left[k] != nil {
		// What is resumed is an object.
		_, err := w.store.In(one).Writer(ctx, ref)
		w.refused("Writer", err)
		return
	}
	scope := w.scope()
	// It lives as long as the writer.
	opened, err := w.store.In(scope).Writer(w.Context(), ref)
	w.say("open %d in lease %q: %v", k, scope.Lease, err)
	w.must("Writer", err)
	w.writers[k] = &simWriter{Writer: opened, lease: w.model.live[scope.Lease]}
	if w.left[k] != nil && scope.Lease != "" {
		w.left[k][w.model.live[scope.Lease]] = true // also if there is a crash now
	}
}

// finish ends a writer: it commits, or leaves an ingest.
func (w *world) finish(k int) {
	sw := w.writers[k]
	if sw == nil || w.now < w.held[0] {
		return
	}
	delete(w.writers, k)
	b, ref := bytesOf("one", k), fmt.Sprintf("w%d", k)
	st, err := sw.Status(w.Context())
	w.must("Status", err)
	if w.rnd.IntN(2) == 0 {
		_, err := sw.Write(b[st.Offset:min(int(st.Offset)+2, len(b))])
		w.must("Write", err)
		w.must("Close", sw.Close())
		w.say("leave %d in lease %v", k, sw.lease)
		if w.left[k] == nil {
			w.left[k] = map[lease.Ref]bool{}
		}
		if sw.lease.ID != "" {
			w.left[k][sw.lease] = true
		}
		for _, l := range sw.dropped {
			delete(w.left[k], l)
		}
		return
	}
	_, err = sw.Write(b[st.Offset:])
	w.must("Write", err)
	o, labels := w.model.pick(w.rnd, k, w.name)
	err = sw.Commit(w.Context(), int64(len(b)), "", labels)
	w.say("commit %d in lease %v: %v", k, sw.lease, err)
	delete(w.left, k)
	l, alive := w.model.live[sw.lease.ID]
	if sw.lease.ID != "" && !alive && errors.Is(err, errdefs.ErrNotFound) {
		w.must("Abort", w.store.In(one).Abort(w.Context(), ref))
		return
	}
	if !errors.Is(err, errdefs.ErrAlreadyExists) {
		w.must("Commit", err)
	}
	w.model.made(k, o)
	if alive {
		w.model.joined(k, l)
	}
}

// checkLeft wants every ingest that was left and is in no lease, or in one that
// lives.
func (w *world) checkLeft() {
	for k, leases := range w.left {
		if w.writers[k] != nil {
			continue
		}
		_, err := w.store.In(one).Status(w.Context(), fmt.Sprintf("w%d", k))
		switch {
		case err == nil:
		case !errors.Is(err, errdefs.ErrNotFound):
			w.must("Status", err)
		case len(leases) == 0 || slices.ContainsFunc(slices.Collect(maps.Keys(leases)), w.model.lives):
			w.Errorf("the ingest of %d is gone: it is in leases %v", k, leases)
		default:
			w.say("the ingest of %d was collected", k)
			delete(w.left, k)
		}
	}
}

func (w *world) crash() {
	at := w.rnd.IntN(2)
	w.say("crash of owner %d", at)
	// What was ended before is held again: that it was is not durable.
	w.held[at], w.frozen[at] = w.kept[at], 0
	if at == 0 {
		w.kill()
	} else {
		w.memory.Restart()
	}
}

// check compares the owners with what clients were told.
func (w *world) check() {
	needed := w.model.needed()
	for k := range simObjects {
		has, err := w.driver(k).Has(w.Context(), w.name(k))
		w.must("Has", err)
		switch {
		case has == (w.model.objects[k] != nil):
		case has:
			w.Errorf("%d is there, and nobody made it", k)
		case needed[k]:
			w.Errorf("%d is gone, and is needed", k)
		default:
			w.say("%d was collected", k)
			w.model.collected(k)
		}
	}
	w.checkLeft()
	if from, to := w.model.lacking(); from >= 0 {
		w.Errorf("%d is there, and lacks %d, which was collected", from, to)
	}
}

// coordinate goes on with the cycle, or begins one.
func (w *world) coordinate() {
	if len(w.program) == 0 {
		w.c.Start()
		w.say("cycle %d", w.c.Epoch)
		w.program = w.cycle()
	}
	next := w.program[0]
	w.program = w.program[1:]
	if err := next(w.Context()); err != nil || w.rnd.IntN(60) == 0 && !w.calm {
		w.say("the cycle ends: %v", err)
		w.program = nil
		w.end(w.Context())
	}
}

func (w *world) end(ctx context.Context) {
	err := w.c.End(ctx)
	w.say("end %d: %v", w.c.Epoch, err)
}

func (w *world) cycle() (program []func(context.Context) error) {
	both := func(do func(context.Context, int) error) {
		for i := range w.c.Owners {
			program = append(program, func(ctx context.Context) error { return do(ctx, i) })
		}
	}
	both(w.c.BeginOne)
	program = append(program, func(context.Context) error { w.c.ReadLeases(); return nil })
	both(w.c.MarkOne)
	both(func(ctx context.Context, i int) error { return w.c.FreezeOne(ctx, i, gc.HoldMax) })
	return append(program, func(context.Context) error {
		for _, p := range w.c.Dead() {
			w.program = append(w.program, func(ctx context.Context) error {
				_, err := w.c.SweepPart(ctx, p)
				return err
			})
		}
		w.program = append(w.program, func(ctx context.Context) error { w.end(ctx); return nil })
		return nil
	})
}

// quiet lets nobody but the coordinator at work.
func (w *world) quiet() {
	w.calm = true
	w.now = w.now.Add(gc.HoldMax)
	for k, sw := range w.writers {
		w.must("Close", sw.Close())
		w.must("Abort", w.store.In(one).Abort(w.Context(), fmt.Sprintf("w%d", k)))
		delete(w.writers, k)
		delete(w.left, k)
	}
	for range 2 {
		_, err := w.c.Cycle(w.Context())
		w.must("Cycle", err)
		w.check()
	}
	needed := w.model.needed()
	for k := range w.model.objects {
		if !needed[k] {
			w.Errorf("%d stays, and nobody needs it", k)
		}
	}
	for k, leases := range w.left {
		if len(leases) > 0 && !slices.ContainsFunc(slices.Collect(maps.Keys(leases)), w.model.lives) {
			w.Errorf("the ingest of %d stays, in leases %v", k, leases)
		}
	}
	w.store.sweep(w.Context())
	checkFiles(w.T, w.store, "at the end")
	for k := range needed {
		if k%2 == 0 {
			b, err := content.ReadAll(w.Context(), w.store.In(one), digest.Digest(w.name(k).ID), 1<<20)
			if err != nil || !bytes.Equal(b, bytesOf("one", k)) {
				w.Errorf("%d: %d bytes, %v", k, len(b), err)
			}
		}
	}
}

var errLost = errors.New("the call was lost")

// A lossy is the wire between the coordinator and an owner.
type lossy struct {
	w  *world
	at int
}

func (l *lossy) owner() gc.Owner {
	if l.at == 0 {
		return l.w.store
	}
	return l.w.memory
}

// call makes a call, or loses it before or after.
func (l *lossy) call(what string, do func() error) error {
	n := l.w.rnd.IntN(40)
	if l.w.calm {
		n = 2
	}
	if n == 0 {
		l.w.say("%s of owner %d is lost", what, l.at)
		return errLost
	}
	err := do()
	l.w.say("%s of owner %d in %d: %v", what, l.at, l.w.c.Epoch, err)
	if n == 1 {
		l.w.say("and its answer is lost")
		return errLost
	}
	return err
}

// Begin does not wait for the end of an older freeze: time stands still.
func (l *lossy) Begin(ctx context.Context, epoch gc.Epoch) error {
	return l.call("Begin", func() error {
		if l.w.now < l.w.held[l.at] {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, time.Millisecond)
			defer cancel()
		}
		l.w.frozen[l.at] = 0
		return l.owner().Begin(ctx, epoch)
	})
}

func (l *lossy) Mark(ctx context.Context, epoch gc.Epoch) iter.Seq2[gc.Object, error] {
	return l.stream("Mark", l.owner().Mark(ctx, epoch), func() {})
}

func (l *lossy) Freeze(ctx context.Context, epoch gc.Epoch, deadline gc.Instant) iter.Seq2[gc.Object, error] {
	return l.stream("Freeze", l.owner().Freeze(ctx, epoch, deadline), func() {
		l.w.held[l.at], l.w.kept[l.at], l.w.frozen[l.at] = deadline, deadline, epoch
	})
}

// stream yields what an owner answered, once it has answered all.
func (l *lossy) stream(what string, from iter.Seq2[gc.Object, error], then func()) iter.Seq2[gc.Object, error] {
	return func(yield func(gc.Object, error) bool) {
		var all []gc.Object
		if err := l.call(what, func() error {
			for o, err := range from {
				if err != nil {
					return err
				}
				all = append(all, o)
			}
			then()
			return nil
		}); err != nil {
			yield(gc.Object{}, err)
			return
		}
		for _, o := range all {
			if !yield(o, nil) {
				return
			}
		}
	}
}

func (l *lossy) Sweep(ctx context.Context, epoch gc.Epoch, dead []gc.Node) (n int, err error) {
	l.w.heard = append(l.w.heard, func(ctx context.Context) {
		n, err := l.owner().Sweep(ctx, epoch, dead)
		l.w.say("Sweep of owner %d in %d: %d, %v", l.at, epoch, n, err)
	})
	err = l.call("Sweep", func() error {
		n, err = l.owner().Sweep(ctx, epoch, dead)
		return err
	})
	return n, err
}

func (l *lossy) End(ctx context.Context, epoch gc.Epoch) error {
	return l.call("End", func() error {
		if l.w.frozen[l.at] == epoch {
			l.w.held[l.at], l.w.frozen[l.at] = 0, 0
		}
		return l.owner().End(ctx, epoch)
	})
}
