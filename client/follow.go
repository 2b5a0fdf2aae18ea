package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
)

// Follow yields events as [event.Subscriber] does, and goes on when the bus has
// restarted, from where it was. Where it cannot, it yields the [event.Gap] and
// goes on with the oldest event that is kept. A bus that does not say where a
// subscription begins, as containerd's, may lose what happens while it is away:
// that is [errdefs.ErrOutOfRange] too. Any other error is the last.
func (c *Client) Follow(ctx context.Context, o event.SubscribeOptions) (iter.Seq2[event.Event, error], error) {
	reached := o.Reached
	o.Reached = func(at event.Cursor) {
		o.After, o.Since = &at, time.Time{}
		if reached != nil {
			reached(at)
		}
	}
	events, err := c.subscribe(ctx, &o)
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
					o.After, o.Since = &event.Cursor{Epoch: e.Epoch, Sequence: e.Sequence}, time.Time{}
				}
				if !yield(e, nil) {
					return
				}
			}
			for ended != nil {
				gap := lost(&o, ended)
				if ctx.Err() != nil || gap == nil && !errors.Is(ended, errdefs.ErrUnavailable) {
					yield(event.Event{}, ended)
					return
				}
				if gap != nil && !yield(event.Event{}, gap) {
					return
				}
				events, ended = c.resume(ctx, &o)
			}
		}
	}, nil
}

// lost returns what a subscription that ended with err has lost, which is
// nothing if it can go on, and sets o to where it goes on.
func lost(o *event.SubscribeOptions, err error) error {
	var gap *event.Gap
	switch {
	case errors.As(err, &gap):
		o.After, o.Since = &gap.To, time.Time{}
		return err
	case errors.Is(err, errdefs.ErrOutOfRange): // of a bus that says no more
		o.After, o.Since = nil, time.Time{}
		return err
	case errors.Is(err, errdefs.ErrUnavailable) && o.After == nil && o.Since.IsZero():
		return fmt.Errorf("the bus went away and events may be lost: %w", errdefs.ErrOutOfRange)
	}
	return nil
}

// resume subscribes again, for as long as it takes or until ctx ends.
func (c *Client) resume(ctx context.Context, o *event.SubscribeOptions) (iter.Seq2[event.Event, error], error) {
	for {
		events, err := c.subscribe(ctx, o)
		if !errors.Is(err, errdefs.ErrUnavailable) {
			return events, err
		}
		if !sleep(ctx, pauseMax) {
			return nil, ctx.Err()
		}
	}
}

func (c *Client) subscribe(ctx context.Context, o *event.SubscribeOptions) (events iter.Seq2[event.Event, error], err error) {
	err = again(ctx, 0, func(ctx context.Context, _ bool) error {
		events, err = c.Events.Subscribe(ctx, *o)
		return err
	})
	return events, err
}
