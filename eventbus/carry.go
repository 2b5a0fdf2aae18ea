package eventbus

import (
	"context"
	"sync"
	"time"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventnats"
)

// carry begins what goes over NATS: events are taken from those who publish, and
// told to those who read and those who listen. The function that it returns does
// it, until ctx ends.
func (b *Bus) carry(ctx context.Context) (do func(), err error) {
	at, err := b.begin(event.SubscribeOptions{})
	if err != nil {
		return nil, err
	}
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
		all.Go(func() { b.tell(ctx, at) })
		all.Wait()
	}, nil
}

// tell tells those who listen just now what happens behind a cursor.
func (b *Bus) tell(ctx context.Context, after event.Cursor) {
	follow := b.follow(after)
	for {
		events, err := follow.next(ctx, nil)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			b.log.Warn("those who only listen by NATS miss events", "err", err)
			_ = pause(ctx, time.Second) // said above
		}
		for _, e := range events {
			if !b.somebodyListens(e) {
				continue
			}
			if err := b.conn.Tell(e); err != nil {
				b.log.Warn("those who only listen by NATS miss an event", "sequence", e.Sequence, "err", err)
			}
		}
	}
}

// somebodyListens says whether to tell of an event at all. Mostly nobody does,
// and telling costs more than asking.
func (b *Bus) somebodyListens(e event.Event) bool {
	return b.roles.byName[roleBus].in.SubscriptionInterest(eventnats.Subject(e.Namespace, e.Topic))
}
