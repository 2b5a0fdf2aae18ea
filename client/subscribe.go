package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/ident"
)

// A Subscription is told every event at least once and in order, through
// restarts of the bus, of the node and of its own process: a cursor in a file
// says how far it came. Where events are lost all the same, it is told so.
type Subscription struct {
	// Name is what operators see of it: an identifier.
	Name string

	// Cursor is the file that says how far it came, in a directory that is
	// there. One process uses it at a time. Without one, every start is the
	// first.
	Cursor string

	// Subjects are the events that it is told of, by NATS's subjects with
	// their wildcards: "gantry.v1.*.tasks.>". None is all that it may see.
	// Filters are as in [event.SubscribeOptions], and both have to match.
	Subjects []string
	Filters  []string

	// Since is where the first start begins; the zero time is now.
	Since time.Time

	// Handle does the subscriber's work. It is called for one event at a time,
	// and again for the same one, with pauses, until it returns nil. An event
	// may be told again after a crash, so doing the work twice is to be doing
	// it once.
	Handle func(ctx context.Context, e event.Event) error

	// Relist makes what the subscriber knows true without events: it lists
	// what they are about. It is called before the first event of the first
	// start, with nil, and behind each gap, before the next event. It is
	// called again, with pauses, until it returns nil. What happens while it
	// lists is told afterwards.
	Relist func(ctx context.Context, lost *event.Gap) error

	// Reached, if there is one, is told how far the bus has looked, also where
	// there was nothing to tell: the bus is there. That it is not, Retry is
	// told.
	Reached func(event.Cursor)

	// Retry, if there is one, is told why something is tried again. It may be
	// called by several goroutines at once.
	Retry func(err error)
}

const (
	// trouble is the longest pause before something is tried again.
	trouble = 5 * time.Second

	// idsMax is how many events are known to have been handled. The bus tells
	// one twice only if it was published twice, with more than an hour between.
	idsMax = 4096
)

func (s Subscription) check() error {
	if s.Handle == nil || s.Relist == nil {
		return fmt.Errorf("subscription %q: Handle and Relist are needed: %w", s.Name, errdefs.ErrInvalidArgument)
	}
	if err := ident.Check(s.Name); err != nil {
		return fmt.Errorf("subscription: %w", err)
	}
	return nil
}

// A subscribe begins a subscription to some bus.
type subscribe func(context.Context, event.SubscribeOptions) (iter.Seq2[event.Event, error], error)

// follow handles events until ctx ends, or asking again could not help.
func (s Subscription) follow(ctx context.Context, open subscribe) (err error) {
	if err := s.check(); err != nil {
		return err
	}
	f := follower{Subscription: s, open: open, done: make(map[string]bool)}
	if s.Cursor != "" {
		if f.at, err = readCursor(s.Cursor); err != nil {
			return fmt.Errorf("subscription %s: %w", s.Name, err)
		}
		f.keeper = &keeper{path: s.Cursor, wake: make(chan struct{}, 1), retry: f.retry}
		var keeping sync.WaitGroup
		over, cancel := context.WithCancel(context.WithoutCancel(ctx))
		var kept error
		keeping.Go(func() { kept = f.keeper.run(over) })
		defer func() {
			cancel()
			keeping.Wait()
			if kept != nil {
				err = errors.Join(err, kept)
			}
		}()
	}
	f.known = f.at != nil
	for pause := pauseFirst; ; pause = min(2*pause, trouble) {
		moved := f.moved
		err := f.once(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if isFinal(err) {
			return fmt.Errorf("subscription %s: %w", s.Name, err)
		}
		if f.moved != moved {
			pause = pauseFirst
		}
		f.retry(err)
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
	}
}

// isFinal says whether asking again gives the same answer.
func isFinal(err error) bool {
	return errdefs.IsInvalidArgument(err) || errdefs.IsPermissionDenied(err) || errdefs.IsNotImplemented(err)
}

// A follower is a Subscription that goes on.
type follower struct {
	Subscription
	open   subscribe
	keeper *keeper // nil keeps nothing

	at    *event.Cursor // what is past has been handled
	known bool          // what happened up to there is known
	moved int           // how often at did

	done map[string]bool // ids that were handled; last are the same, in order
	last []string
}

func (f *follower) retry(err error) {
	if f.Retry != nil {
		f.Retry(err)
	}
}

// once subscribes, and handles what it is told until that ends.
func (f *follower) once(ctx context.Context) error {
	o := event.SubscribeOptions{Filters: f.Filters, After: f.at, Reached: f.reach}
	if f.at == nil {
		o.Since = f.Since
		f.known = false // nobody knows what was not told by a bus that does not say where it is
	}
	events, err := f.open(ctx, o)
	if errdefs.IsOutOfRange(err) {
		return f.relist(ctx, err)
	}
	if err != nil {
		return err
	}
	if !f.known {
		if err := f.relist(ctx, nil); err != nil {
			return err
		}
	}
	for e, err := range events {
		if errdefs.IsOutOfRange(err) {
			return f.relist(ctx, err)
		}
		if err != nil {
			return err
		}
		if err := f.handle(ctx, e); err != nil {
			return err
		}
	}
	return fmt.Errorf("the bus ended the subscription: %w", errdefs.ErrUnavailable)
}

// reach notes that the bus has nothing to tell up to a cursor.
func (f *follower) reach(at event.Cursor) {
	f.at = &at
	if f.known {
		f.keep()
	}
	if f.Reached != nil {
		f.Reached(at)
	}
}

func (f *follower) keep() {
	f.moved++
	if f.keeper != nil && f.at != nil {
		f.keeper.put(*f.at)
	}
}

// relist has the subscriber list, because of what it lost, or nothing at the
// first start. Where it goes on is kept only then.
func (f *follower) relist(ctx context.Context, lost error) error {
	f.known = false
	var gap *event.Gap
	switch {
	case errors.As(lost, &gap):
		f.at = &gap.To
	case lost != nil: // a bus that says no more goes on from now
		gap, f.at = &event.Gap{}, nil
	}
	if err := f.insist(ctx, func() error { return f.Relist(ctx, gap) }); err != nil {
		return err
	}
	f.known = true
	f.keep()
	return lost
}

func (f *follower) handle(ctx context.Context, e event.Event) error {
	if !f.done[e.ID] && f.wants(e) {
		if err := f.insist(ctx, func() error { return f.Handle(ctx, e) }); err != nil {
			return err
		}
		f.note(e.ID)
	}
	if e.Sequence > 0 {
		f.at = &event.Cursor{Epoch: e.Epoch, Sequence: e.Sequence}
	}
	f.keep()
	return nil
}

func (f *follower) wants(e event.Event) bool {
	return len(f.Subjects) == 0 || eventnats.Covers(f.Subjects, eventnats.Subject(e.Namespace, e.Topic))
}

// insist calls do until it returns nil, or ctx ends.
func (f *follower) insist(ctx context.Context, do func() error) error {
	for pause := pauseFirst; ; pause = min(2*pause, trouble) {
		err := do()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f.retry(err)
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
	}
}

// note remembers an id, and forgets the oldest for it.
func (f *follower) note(id string) {
	if id == "" {
		return
	}
	if len(f.last) >= idsMax {
		delete(f.done, f.last[0])
		f.last = f.last[1:]
	}
	f.done[id] = true
	f.last = append(f.last, id)
}
