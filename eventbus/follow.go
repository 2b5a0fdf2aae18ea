package eventbus

import (
	"context"
	"errors"
	"time"

	"github.com/gantryd/gantry/services/event"
)

const (
	// A subscriber that is behind reads so much at once, or one event. It is
	// what it keeps in memory if it does not go on.
	rereadEvents = 64
	rereadBytes  = 64 << 10

	// rereadsMax is how many do so at the same time: all that they are sent is
	// less than the server lets wait.
	rereadsMax = 2
)

// errOver is that nothing came in time.
var errOver = errors.New("no event in time")

// next waits for the event at a sequence, until over, which may be nil, and
// returns it and some that follow.
func (b *Bus) next(ctx context.Context, over <-chan time.Time, from uint64) ([]event.Event, error) {
	for {
		events, added, behind := b.window.from(from)
		if len(events) > 0 {
			return events, ctx.Err()
		}
		if behind {
			return b.reread(ctx, from)
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

// reread reads from the stream what the window does not have any more. That is
// at least one event, or a gap: the window is past it.
func (b *Bus) reread(ctx context.Context, from uint64) ([]event.Event, error) {
	select {
	case b.rereads <- struct{}{}:
		defer func() { <-b.rereads }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	after := event.Cursor{Epoch: b.epoch, Sequence: from - 1}
	begin := b.window.begin()
	events, err := b.past.Some(ctx, after, int(min(begin-from, rereadEvents)), rereadBytes)
	if err == nil && len(events) == 0 {
		err = &event.Gap{From: after, To: event.Cursor{Epoch: b.epoch, Sequence: begin - 1}}
	}
	return events, err
}
