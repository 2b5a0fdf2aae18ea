package eventbus

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/gantryd/gantry/eventbus/journal"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/filter"
)

// rereadEvents is how many events a subscriber that is behind reads at once. It
// is what it keeps in memory if it does not go on.
const rereadEvents = 64

// errOver is that nothing came in time.
var errOver = errors.New("no event in time")

// Subscribe implements event.Subscriber.
func (b *Bus) Subscribe(ctx context.Context, o event.SubscribeOptions) (iter.Seq2[event.Event, error], error) {
	f, err := filter.Parse(o.Filters...)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	at, err := b.begin(o)
	if err != nil {
		return nil, err
	}
	if o.Reached != nil {
		o.Reached(at)
	}
	return func(yield func(event.Event, error) bool) {
		follow := b.follow(at)
		for {
			events, err := follow.next(ctx, nil)
			if err != nil {
				yield(event.Event{}, err)
				return
			}
			for _, e := range events {
				if ctx.Err() != nil {
					break // said above
				}
				if f.Match(e.Fields()) && !yield(e, nil) {
					return
				}
			}
		}
	}, nil
}

// begin returns where a subscription begins.
func (b *Bus) begin(o event.SubscribeOptions) (event.Cursor, error) {
	if err := o.Check(); err != nil {
		return event.Cursor{}, err
	}
	first, last := b.journal.Bounds()
	switch after := o.After; {
	case after != nil && (after.Epoch != b.epoch || after.Sequence > last || after.Sequence < first-1):
		return event.Cursor{}, &event.Gap{From: *after, To: b.at(first - 1)}
	case after != nil:
		return *after, nil
	case !o.Since.IsZero():
		from, err := b.journal.Since(o.Since)
		return b.at(from - 1), err
	}
	return b.at(last), nil
}

func (b *Bus) at(sequence uint64) event.Cursor {
	return event.Cursor{Epoch: b.epoch, Sequence: sequence}
}

// A follower goes from event to event: through the window while it keeps up, and
// through the journal while it does not.
type follower struct {
	bus    *Bus
	at     uint64          // of what it has
	reader *journal.Reader // while it is behind; it holds nothing that has to be closed
}

// follow begins behind a cursor.
func (b *Bus) follow(after event.Cursor) *follower {
	return &follower{bus: b, at: after.Sequence}
}

// next waits for the next event, until over, which may be nil, and returns it
// and some that follow. Where an event is missing it returns a [event.Gap], and
// goes on behind it.
func (f *follower) next(ctx context.Context, over <-chan time.Time) ([]event.Event, error) {
	for {
		events, added, behind := f.bus.window.from(f.at + 1)
		if len(events) > 0 {
			f.reader = nil
			f.at = events[len(events)-1].Sequence
			return events, ctx.Err()
		}
		if behind {
			return f.reread()
		}
		select {
		case <-added:
		case <-over:
			return nil, errOver
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// reread reads what the window does not have any more.
func (f *follower) reread() ([]event.Event, error) {
	if f.reader == nil {
		f.reader = f.bus.journal.Reader(f.at + 1)
	}
	until := f.bus.window.begin()
	records, err := f.reader.Next(int(min(until-f.at-1, rereadEvents)))
	if err != nil {
		return nil, err
	}
	var events []event.Event
	for _, r := range records {
		e, err := fromRecord(r, f.bus.epoch)
		if err != nil || r.Sequence != f.at+1 {
			break
		}
		events, f.at = append(events, e), r.Sequence
	}
	if len(events) > 0 {
		if len(events) < len(records) {
			f.reader = nil // it is past what is missing
		}
		return events, nil
	}
	return nil, f.skip(records, until)
}

// skip goes to the next event that there is, and returns what is between.
func (f *follower) skip(records []journal.Record, until uint64) error {
	f.reader = nil
	from, to := f.at, until-1
	for _, r := range records {
		if _, err := fromRecord(r, f.bus.epoch); err == nil {
			to = r.Sequence - 1
			break
		}
	}
	f.at = to
	return &event.Gap{From: f.bus.at(from), To: f.bus.at(to)}
}
