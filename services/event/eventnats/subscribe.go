package eventnats

import (
	"context"
	"crypto/rand"
	"fmt"
	"iter"
	"time"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/filter"
)

// waitTime is how long a read waits for events. A reader that is gone is known
// to the bus for as long.
const waitTime = 20 * time.Second

// Subscribe implements event.Subscriber. When the connection is lost the
// sequence ends with [errdefs.ErrUnavailable]; the cursor of the last event goes
// on.
func (b *Bus) Subscribe(ctx context.Context, o event.SubscribeOptions) (iter.Seq2[event.Event, error], error) {
	return b.SubscribeTo(ctx, Read{Options: o})
}

// SubscribeTo is Subscribe with a name and subjects. How much is asked for at a
// time is not the caller's.
func (b *Bus) SubscribeTo(ctx context.Context, r Read) (iter.Seq2[event.Event, error], error) {
	if _, err := filter.Parse(r.Options.Filters...); err != nil {
		return nil, err
	}
	reached := r.Options.Reached
	if reached == nil {
		reached = func(event.Cursor) {}
	}
	s := &subscription{bus: b, read: r, reached: reached}
	// What there is already is kept until the caller ranges: it is no more than
	// one read.
	var told []event.Event
	keep := func(e event.Event) bool { told = append(told, e); return true }
	looked, _, err := s.ask(ctx, 0, keep)
	if err != nil {
		return nil, err
	}
	return func(yield func(event.Event, error) bool) {
		for _, e := range told {
			if ctx.Err() != nil {
				break // said below
			}
			if !yield(e, nil) {
				return
			}
		}
		told = nil
		for more := true; more; {
			if looked {
				reached(s.at)
			}
			looked, more, err = s.ask(ctx, waitTime, func(e event.Event) bool { return yield(e, nil) })
			if err != nil {
				yield(event.Event{}, err)
				return
			}
		}
	}, nil
}

// A subscription is a reader that asks again and again.
type subscription struct {
	bus     *Bus
	read    Read
	reached func(event.Cursor)

	begun bool
	at    event.Cursor // of what was told; it means nothing before it has begun
}

// ask reads once. The bus may have looked further than it had something to
// tell. There is no more to ask if tell wants none, or after an error.
func (s *subscription) ask(ctx context.Context, wait time.Duration, tell func(event.Event) bool) (looked, more bool, err error) {
	inner, cancel := s.bus.bound(ctx)
	defer cancel()
	// There is place for all that can come.
	answers := make(chan *nats.Msg, 2*ReadEvents)
	forget, err := s.request(wait, answers)
	if err != nil {
		return false, false, s.failed(ctx, inner, err)
	}
	defer forget()
	for {
		m, err := nextMessage(inner, answers, wait+callTime)
		if err != nil {
			return false, false, s.failed(ctx, inner, err)
		}
		a, err := fromAnswer(m)
		switch {
		case err != nil:
			return false, false, fmt.Errorf("read events: %v: %w", err, errdefs.ErrInternal)
		case a.err != nil:
			return false, false, a.err
		case !s.begun:
			s.begun, s.at = true, a.before
			s.reached(s.at)
		case a.before != s.at:
			return false, false, fmt.Errorf("what was told after %s, and before %s, did not arrive: %w", s.at, a.before, errdefs.ErrUnavailable)
		}
		looked, s.at = a.at != s.at, a.at
		if a.end {
			return looked, true, nil
		}
		if ctx.Err() != nil {
			return false, false, ctx.Err()
		}
		if !tell(a.event) {
			return false, false, nil
		}
	}
}

// request asks for what comes behind s.at, until forget.
func (s *subscription) request(wait time.Duration, answers chan *nats.Msg) (forget func(), err error) {
	r := s.read
	r.Wait = wait
	if s.begun {
		r.Options.After, r.Options.Since = &s.at, time.Time{}
	}
	body, err := toRequest(r)
	if err != nil {
		return nil, err
	}
	// An inbox for each read: what is still on its way of an earlier one is
	// not told.
	inbox := readsPrefix + rand.Text()
	sub, err := s.bus.nc.ChanSubscribe(inbox, answers)
	if err != nil {
		return nil, err
	}
	forget = func() { _ = sub.Unsubscribe() }
	if err := s.bus.nc.PublishRequest(ReadSubject, inbox, body); err != nil {
		forget()
		return nil, err
	}
	return forget, nil
}

func (s *subscription) failed(outer, inner context.Context, err error) error {
	if outer.Err() != nil {
		return outer.Err()
	}
	if errdefs.IsInvalidArgument(err) {
		return err
	}
	return fmt.Errorf("read events: %w", kind(outer, inner, err))
}

func nextMessage(ctx context.Context, answers <-chan *nats.Msg, limit time.Duration) (*nats.Msg, error) {
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case m := <-answers:
		if m.Header.Get("Status") == "503" { // the server's, when nobody is there to answer
			return nil, nats.ErrNoResponders
		}
		return m, nil
	case <-late.C:
		return nil, nats.ErrTimeout
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
