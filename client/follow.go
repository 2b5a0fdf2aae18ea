package client

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
)

// Follow yields events as [event.Subscriber] does, and goes on when the bus has
// restarted, from where it was. Where it cannot, as events are no longer kept
// or none had come yet, it yields an error that is [errdefs.ErrOutOfRange], a
// gap, and goes on with what happens now. Any other error is the last.
func (c *Client) Follow(ctx context.Context, o event.SubscribeOptions) (iter.Seq2[event.Event, error], error) {
	events, err := c.subscribe(ctx, o)
	if err != nil {
		return nil, err
	}
	return func(yield func(event.Event, error) bool) {
		for {
			var ended error
			for e, err := range events {
				if err != nil {
					ended = err
					break
				}
				if e.Sequence > 0 {
					o.After = &event.Cursor{Epoch: e.Epoch, Sequence: e.Sequence}
				}
				if !yield(e, nil) {
					return
				}
			}
			if !errors.Is(ended, errdefs.ErrUnavailable) {
				yield(event.Event{}, ended)
				return
			}
			if events, ended = c.resume(ctx, &o); ended != nil {
				yield(event.Event{}, ended)
				return
			}
			if o.After == nil && !yield(event.Event{}, fmt.Errorf("the bus went away and events may be lost: %w", errdefs.ErrOutOfRange)) {
				return
			}
		}
	}, nil
}

// resume subscribes again, for as long as it takes. It forgets the cursor if
// what follows it is no longer kept.
func (c *Client) resume(ctx context.Context, o *event.SubscribeOptions) (iter.Seq2[event.Event, error], error) {
	for {
		events, err := c.subscribe(ctx, *o)
		switch {
		case errors.Is(err, errdefs.ErrUnavailable) && sleep(ctx, pauseMax):
		case errors.Is(err, errdefs.ErrOutOfRange) && o.After != nil:
			o.After = nil
		default:
			return events, err
		}
	}
}

func (c *Client) subscribe(ctx context.Context, o event.SubscribeOptions) (events iter.Seq2[event.Event, error], err error) {
	err = again(ctx, 0, func(ctx context.Context, _ bool) error {
		events, err = c.Events.Subscribe(ctx, o)
		return err
	})
	return events, err
}
