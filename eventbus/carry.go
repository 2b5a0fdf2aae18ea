package eventbus

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventnats"
)

// carry begins what goes over NATS: events are taken from those who publish, and
// told to those who read and those who listen. The function that it returns does
// it, until ctx ends.
func (b *Bus) carry(ctx context.Context) (do func(), err error) {
	take, err := b.conn.TakeIn(ctx, b.store)
	if err != nil {
		return nil, err
	}
	answer, err := b.answerReads(ctx)
	if err != nil {
		return nil, err
	}
	return func() {
		var all sync.WaitGroup
		all.Go(take)
		all.Go(answer)
		all.Go(func() { b.tell(ctx) })
		all.Wait()
	}, nil
}

// An ear is where those who listen just now are waited for. Mostly nobody does,
// and then an event wakes nobody.
type ear struct {
	wanted atomic.Uint64 // sequence of the first event that somebody listens for
	wake   chan struct{} // has an item when there is one
}

// hear notes what somebody listens for.
func (b *Bus) hear(events []event.Event) {
	for _, e := range events {
		if b.somebodyListens(e) {
			b.ear.wanted.CompareAndSwap(0, e.Sequence)
			select {
			case b.ear.wake <- struct{}{}:
			default:
			}
			return
		}
	}
}

// tell tells those who listen just now.
func (b *Bus) tell(ctx context.Context) {
	at := uint64(0) // the next to tell
	for {
		select {
		case <-b.ear.wake:
		case <-ctx.Done():
			return
		}
		at = max(at, b.ear.wanted.Swap(0))
		for ctx.Err() == nil {
			events, _, behind := b.window.from(at)
			if behind {
				b.log.Warn("those who only listen by NATS miss events")
				at = b.window.begin()
				continue
			}
			if len(events) == 0 {
				break
			}
			b.tellAll(events)
			at = events[len(events)-1].Sequence + 1
		}
	}
}

func (b *Bus) tellAll(events []event.Event) {
	for _, e := range events {
		if !b.somebodyListens(e) {
			continue
		}
		if err := b.conn.Tell(e); err != nil {
			b.log.Warn("those who only listen by NATS miss an event", "sequence", e.Sequence, "err", err)
		}
	}
}

func (b *Bus) somebodyListens(e event.Event) bool {
	return b.roles.byName[roleBus].in.SubscriptionInterest(eventnats.Subject(e.Namespace, e.Topic))
}
