package gc

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
)

// A Gate is what owners have in common: it lets writers in or holds them, keeps
// the notes, and knows which cycle it is. An [Owner] has one and adds its
// objects.
type Gate struct {
	now  func() Instant
	turn chan struct{} // held by Begin, Freeze, Sweep and End

	// hidden is what a Sweep is about to remove.
	hidden atomic.Pointer[map[Node]bool]

	// mu guards the fields below it.
	mu       sync.Mutex
	inside   int           // writers that are let in
	idle     chan struct{} // closed when the last of them leaves, if somebody waits
	shut     chan struct{} // closed when writers are let in again; nil if they are
	until    Instant       // by then they are, if nobody sweeps
	sweeping bool
	newest   Epoch
	epoch    Epoch // of the cycle that goes on, or 0
	begun    Instant
	frozen   bool
	notes    map[Node]struct{} // nil if nobody wants them
	lost     bool              // there were too many notes, or for too long
}

// NewGate returns a gate that lets writers in. The clock is [Now], but for
// tests.
func NewGate(now func() Instant) *Gate {
	return &Gate{now: now, turn: make(chan struct{}, 1)}
}

// Enter waits until writers are let in and counts one more, who is to Leave soon
// and enters no second time before. An error is that of ctx.
func (g *Gate) Enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		shut, left := g.held()
		if shut == nil {
			g.inside++
			g.mu.Unlock()
			return nil
		}
		g.mu.Unlock()
		if err := await(ctx, shut, left); err != nil {
			return err
		}
	}
}

// held says what to wait for, and how long, if writers are held. g.mu is held.
func (g *Gate) held() (<-chan struct{}, time.Duration) {
	if g.shut == nil {
		return nil, 0
	}
	left := g.until.Sub(g.now())
	if left <= 0 && !g.sweeping {
		g.open()
		return nil, 0
	}
	return g.shut, left
}

// await waits for a channel to be closed, or for a time if that is not over.
func await(ctx context.Context, c <-chan struct{}, d time.Duration) error {
	var late <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-c:
	case <-late:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// open lets writers in. g.mu is held.
func (g *Gate) open() {
	if g.shut != nil {
		close(g.shut)
		g.shut = nil
	}
}

// Leave is the end of an Enter that was no error.
func (g *Gate) Leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

// Hold holds writers until a deadline that was made durable before a restart.
// One that is more than HoldMax ahead is of another boot.
func (g *Gate) Hold(deadline Instant) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if left := deadline.Sub(g.now()); left > 0 && left <= HoldMax {
		g.shut, g.until = make(chan struct{}), deadline
	}
}

// hold holds writers and waits for those that are inside. On an error they are
// not held.
func (g *Gate) hold(ctx context.Context, until Instant) error {
	// Somebody may be held to the deadline of a cycle before.
	if err := g.Enter(ctx); err != nil {
		return err
	}
	g.mu.Lock()
	g.shut, g.until = make(chan struct{}), until
	g.inside--
	idle := make(chan struct{})
	if g.inside == 0 {
		close(idle)
	} else {
		g.idle = idle
	}
	left := until.Sub(g.now())
	g.mu.Unlock()

	err := await(ctx, idle, max(left, 1))
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.idle = nil; err == nil && (g.inside > 0 || g.now() >= until) {
		err = fmt.Errorf("writers were not done in time: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		g.open()
	}
	return err
}

// Noting says whether there is a cycle that wants notes.
func (g *Gate) Noting() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.notes != nil
}

// Note notes an object, if there is a cycle that wants it. Who calls it was let
// in.
func (g *Gate) Note(n Node) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.notes == nil {
		return
	}
	if _, ok := g.notes[n]; ok {
		return
	}
	if len(g.notes) >= NotesMax || g.now() > g.begun.Add(CycleMax) {
		g.notes, g.lost = nil, true
		return
	}
	g.notes[n] = struct{}{}
}

// Hidden says whether n is about to be removed, and so is not to be found.
func (g *Gate) Hidden(n Node) bool {
	all := g.hidden.Load()
	return all != nil && (*all)[n]
}

// take waits for the turn.
func (g *Gate) take(ctx context.Context) (giveBack func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case g.turn <- struct{}{}:
		return func() { <-g.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Begin implements the method of [Owner].
func (g *Gate) Begin(ctx context.Context, epoch Epoch) error {
	if epoch == 0 {
		return fmt.Errorf("epoch 0: %w", errdefs.ErrInvalidArgument)
	}
	giveBack, err := g.take(ctx)
	if err != nil {
		return err
	}
	defer giveBack()
	g.mu.Lock()
	newest := g.newest
	if epoch > newest {
		g.newest = epoch
		g.forget()
	}
	g.mu.Unlock()
	if epoch <= newest {
		return fmt.Errorf("epoch %d is not newer than %d: %w", epoch, newest, errdefs.ErrFailedPrecondition)
	}
	// Who is inside may have looked for a cycle before there was one. The
	// others wait for a moment.
	if err := g.hold(ctx, g.now().Add(HoldMax)); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.epoch, g.begun, g.notes = epoch, g.now(), make(map[Node]struct{})
	g.open()
	return nil
}

// Apart ends the cycle, if there is one, and runs fn while none can begin. It is
// for what changes records all at once.
func (g *Gate) Apart(ctx context.Context, fn func() error) error {
	giveBack, err := g.take(ctx)
	if err != nil {
		return err
	}
	defer giveBack()
	g.mu.Lock()
	g.forget()
	g.mu.Unlock()
	// Others may go on to sweep until the deadline.
	if err := g.Enter(ctx); err != nil {
		return err
	}
	g.Leave()
	return fn()
}

// forget ends the cycle, but holds whom it holds. g.mu is held.
func (g *Gate) forget() { g.epoch, g.frozen, g.notes, g.lost = 0, false, nil, false }

// Check is [errdefs.ErrFailedPrecondition] unless the cycle goes on.
func (g *Gate) Check(epoch Epoch) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.check(epoch)
}

func (g *Gate) check(epoch Epoch) error {
	switch {
	case g.epoch == 0 || epoch != g.epoch:
		return fmt.Errorf("epoch %d is not that of a cycle here: %w", epoch, errdefs.ErrFailedPrecondition)
	case g.lost || !g.frozen && g.now() > g.begun.Add(CycleMax):
		return fmt.Errorf("epoch %d has more than %d notes, or goes on for longer than %v: %w",
			epoch, NotesMax, CycleMax, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Freeze holds writers and returns what was noted, in order. Before it does it
// calls keep, which makes the deadline durable, for [Gate.Hold].
func (g *Gate) Freeze(ctx context.Context, epoch Epoch, deadline Instant, keep func(context.Context) error) ([]Node, error) {
	giveBack, err := g.take(ctx)
	if err != nil {
		return nil, err
	}
	defer giveBack()
	if err := g.mayFreeze(epoch, deadline); err != nil {
		return nil, err
	}
	if err := keep(ctx); err != nil {
		return nil, err
	}
	if err := g.hold(ctx, deadline); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.check(epoch); err != nil {
		g.open()
		return nil, err
	}
	g.frozen = true
	return slices.SortedFunc(maps.Keys(g.notes), Node.Compare), nil
}

func (g *Gate) mayFreeze(epoch Epoch, deadline Instant) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.check(epoch); err != nil {
		return err
	}
	switch left := deadline.Sub(g.now()); {
	case left > HoldMax:
		return fmt.Errorf("deadline is %v ahead, at most %v: %w", left, HoldMax, errdefs.ErrInvalidArgument)
	case left <= 0:
		return fmt.Errorf("deadline passed %v ago: %w", -left, errdefs.ErrFailedPrecondition)
	case g.frozen:
		return fmt.Errorf("epoch %d is frozen: %w", epoch, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Sweep hides the dead, but for what was noted, and calls remove until none is
// left, or it fails, or the deadline passes. remove returns how many of the
// first are done with, and how many of those it removed; it is called again also
// if that is none.
func (g *Gate) Sweep(ctx context.Context, epoch Epoch, dead []Node, remove func(context.Context, []Node) (done, removed int, err error)) (int, error) {
	giveBack, err := g.take(ctx)
	if err != nil {
		return 0, err
	}
	defer giveBack()
	if dead, err = g.hide(epoch, dead); err != nil {
		return 0, err
	}
	defer g.unhide()
	total := 0
	for len(dead) > 0 {
		if err := g.inTime(); err != nil {
			return total, err
		}
		done, removed, err := remove(ctx, dead)
		if total += removed; err != nil {
			return total, err
		}
		dead = dead[done:]
	}
	return total, nil
}

// hide begins a Sweep and returns what it removes.
func (g *Gate) hide(epoch Epoch, dead []Node) ([]Node, error) {
	if len(dead) > SweepMax {
		return nil, fmt.Errorf("sweep of %d nodes, at most %d: %w", len(dead), SweepMax, errdefs.ErrInvalidArgument)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.check(epoch); err != nil {
		return nil, err
	}
	if !g.frozen || g.now() >= g.until {
		return nil, fmt.Errorf("epoch %d is not frozen: %w", epoch, errdefs.ErrFailedPrecondition)
	}
	hidden := make(map[Node]bool, len(dead))
	dead = slices.Clone(dead)
	dead = slices.DeleteFunc(dead, func(n Node) bool {
		_, noted := g.notes[n]
		hidden[n] = !noted
		return noted
	})
	g.sweeping = true
	g.hidden.Store(&hidden)
	return dead, nil
}

func (g *Gate) inTime() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.now() < g.until {
		return nil
	}
	return fmt.Errorf("the deadline passed: %w", errdefs.ErrFailedPrecondition)
}

// unhide ends a Sweep, and the freeze if its time is over.
func (g *Gate) unhide() {
	g.hidden.Store(nil)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sweeping = false
	g.held()
}

// End implements the method of [Owner].
func (g *Gate) End(ctx context.Context, epoch Epoch) error {
	giveBack, err := g.take(ctx)
	if err != nil {
		return err
	}
	defer giveBack()
	g.mu.Lock()
	defer g.mu.Unlock()
	if epoch != g.epoch || epoch == 0 {
		return nil
	}
	if g.frozen {
		g.open()
	}
	g.forget()
	return nil
}
