package taskd

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

// A live is a task that taskd looks after.
type live struct {
	bundle
	ctx  context.Context // ends with phase dead or gone
	over context.CancelFunc

	around *glance // at its namespace; nil if none was begun

	tended bool // somebody looks after it; guarded by Store.mu

	// asking has a place for each call that asks for a state. A shim that
	// does not answer has stateMax of them, however many want to know.
	asking chan struct{}

	// The calls that are made once for all who ask at the same time.
	waits   flights[waitKey, task.Exit]
	stats   flights[struct{}, *typed.Value] // one
	deletes flights[struct{}, task.Exit]    // one

	// mu guards the fields below it, and is never held across a call.
	mu      sync.Mutex
	phase   phase
	rec     record
	shim    task.Shim     // of phase reached
	exit    task.Exit     // of phase dead
	changed chan struct{} // closed and made anew when any of these changes
}

// A waitKey is a process, as seen through one connection.
type waitKey struct {
	shim task.Shim
	exec string
}

// A phase is what taskd knows of a task.
type phase int

const (
	beginning phase = iota // Create is under way; nobody else sees it
	seeking                // its shim is being looked for
	reached                // there is a connection
	mute                   // the shim does not answer, and is tried again
	dead                   // the shim died; how the task ended is known
	gone                   // deleted
)

func (s *Store) newLive(b bundle, r record) *live {
	l := &live{bundle: b, rec: r, phase: seeking, changed: make(chan struct{}), asking: make(chan struct{}, stateMax)}
	l.ctx, l.over = context.WithCancel(s.ctx)
	return l
}

func (l *live) key() key { return key{l.namespace, l.id} }

// become changes the phase, and whatever change changes, and wakes who waits.
// Nothing follows gone.
func (l *live) become(p phase, change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.phase == gone {
		return
	}
	l.phase = p
	if p == dead || p == gone {
		l.over()
	}
	if change != nil {
		change()
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *live) reach(shim task.Shim) { l.become(reached, func() { l.shim = shim }) }
func (l *live) die(e task.Exit)      { l.become(dead, func() { l.exit, l.shim = e, nil }) }
func (l *live) end()                 { l.become(gone, func() { l.shim = nil }) }
func (l *live) setRecord(r record)   { l.mu.Lock(); l.rec = r; l.mu.Unlock() }
func (l *live) record() record       { l.mu.Lock(); defer l.mu.Unlock(); return l.rec }

func (l *live) visible() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.phase != beginning && l.phase != gone
}

// A view is what is known at one moment.
type view struct {
	phase   phase
	shim    task.Shim
	exit    task.Exit
	rec     record
	changed <-chan struct{}
}

// look returns what is known now. A connection that has just broken is none,
// whether or not that has been noticed.
func (l *live) look() view {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := view{l.phase, l.shim, l.exit, l.rec, l.changed}
	if v.phase == reached {
		select {
		case <-v.shim.Done():
			v.phase, v.shim = seeking, nil
		default:
		}
	}
	return v
}

// known waits until it is known whether the shim can be reached, or for ctx.
func (l *live) known(ctx context.Context) (view, error) {
	for {
		v := l.look()
		if v.phase != seeking {
			return v, nil
		}
		select {
		case <-v.changed:
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}

// connected returns the shim of a task that has one, within seekTime.
func (l *live) connected(ctx context.Context) (task.Shim, error) {
	seek, cancel := context.WithTimeout(ctx, seekTime)
	defer cancel()
	v, err := l.known(seek)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil || v.phase == mute:
		return nil, fmt.Errorf("shim of task %s does not answer: %w", l.id, errdefs.ErrUnavailable)
	case v.phase == dead:
		return nil, fmt.Errorf("task %s has ended with its shim: %w", l.id, errdefs.ErrNotFound)
	case v.phase != reached:
		return nil, fmt.Errorf("task %s not found: %w", l.id, errdefs.ErrNotFound)
	}
	return v.shim, nil
}

// flights share a call among all who ask for the same at the same time. The
// call belongs to none of them: it goes on when they leave.
type flights[K comparable, T any] struct {
	mu  sync.Mutex
	all map[K]*flight[T] // guarded by mu
}

type flight[T any] struct {
	done  chan struct{}
	value T
	err   error
}

// join waits for the call under way for k, or has begin begin one: begin runs
// what it is given in a goroutine that somebody owns.
func (f *flights[K, T]) join(ctx context.Context, k K, begin func(func()), call func() (T, error)) (T, error) {
	f.mu.Lock()
	if f.all == nil {
		f.all = make(map[K]*flight[T])
	}
	c := f.all[k]
	if c == nil {
		c = &flight[T]{done: make(chan struct{})}
		f.all[k] = c
		begin(func() {
			c.value, c.err = call()
			f.mu.Lock()
			delete(f.all, k)
			f.mu.Unlock()
			close(c.done)
		})
	}
	f.mu.Unlock()
	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}
