package eventnats

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/services/event"
)

// askedBytes is how much is kept of what nobody has looked at: somebody may say
// more than a read can be.
const askedBytes = 4 << 20

// An Asked is a read that somebody asked for, with the way back.
type Asked struct {
	Plugin string // its name; empty is an operator. Whoever answers sets it
	Read

	bus   *Bus
	inbox string
	last  event.Cursor // what the reader knows
}

// Asked yields what readers ask for in the account that b is in, from when it
// returns until ctx ends. What cannot be understood is answered here. At most
// waiting reads are not yet looked at; one more is not answered, and asked again. It
// is ranged over once.
func (b *Bus) Asked(ctx context.Context, waiting int) (iter.Seq[*Asked], error) {
	requests := make(chan *nats.Msg, waiting)
	sub, err := b.nc.Subscribe(ReadSubject, func(m *nats.Msg) {
		if len(m.Data) > requestMax {
			m.Data = m.Data[:0:0] // it is not kept, and is no read
		}
		m.Header = nil
		select {
		case requests <- m:
		default:
		}
	})
	if err == nil {
		err = sub.SetPendingLimits(waiting, askedBytes)
	}
	if err != nil {
		return nil, fmt.Errorf("readers: %w", kind(ctx, ctx, err))
	}
	leave := func() { _ = sub.Unsubscribe() }
	inner, cancel := b.call(ctx)
	defer cancel()
	if err := kind(ctx, inner, b.nc.FlushWithContext(inner)); err != nil {
		leave()
		return nil, fmt.Errorf("readers: %w", err)
	}
	return func(yield func(*Asked) bool) {
		defer leave()
		for {
			select {
			case m := <-requests:
				if a := b.asked(m); a != nil && !yield(a) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}, nil
}

// asked returns what m asks for, or nil if that was answered, or cannot be.
func (b *Bus) asked(m *nats.Msg) *Asked {
	if !isInbox(m.Reply) {
		return nil
	}
	a := &Asked{bus: b, inbox: m.Reply}
	var err error
	if a.Read, err = fromRequest(m.Data); err != nil {
		a.End(event.Cursor{}, err)
		return nil
	}
	return a
}

// isInbox says whether a subject is for answers and nothing else. The reply
// subject of a request is not checked by the server: an answer elsewhere would
// be in the name of the bus.
func isInbox(subject string) bool {
	return strings.HasPrefix(subject, nats.InboxPrefix) && len(subject) <= 256 && !strings.ContainsAny(subject, "*>")
}

// Begin says where the read begins. It is called once, before the others.
func (a *Asked) Begin(at event.Cursor) { a.last = at }

// Tell tells of an event.
func (a *Asked) Tell(e event.Event) error {
	if err := a.bus.nc.PublishMsg(toRead(e, a.last, a.bus.node, a.inbox)); err != nil {
		return fmt.Errorf("tell of event %d: %w", e.Sequence, err)
	}
	a.last = event.Cursor{Epoch: e.Epoch, Sequence: e.Sequence}
	return nil
}

// End ends the answer, with an error or with the cursor to go on from.
func (a *Asked) End(at event.Cursor, err error) {
	// Whoever has no answer asks again.
	_ = a.bus.nc.PublishMsg(toEnd(at, a.last, err, a.inbox))
}
