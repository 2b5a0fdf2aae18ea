package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/filter"
)

// parseSince returns where a subscription begins that --since asks for.
func parseSince(since string, now time.Time) (event.SubscribeOptions, error) {
	var o event.SubscribeOptions
	if since == "" {
		return o, nil
	}
	if epoch, _, ok := strings.Cut(since, "/"); ok && epoch != "" {
		c, err := event.ParseCursor(since)
		o.After = &c
		if err != nil {
			return o, fmt.Errorf("--since: %q is no cursor: EPOCH/SEQUENCE", since)
		}
		return o, nil
	}
	if d, err := time.ParseDuration(since); err == nil {
		if d < 0 {
			return o, fmt.Errorf("--since %s is in the future", since)
		}
		o.Since = now.Add(-d)
		return o, nil
	}
	at, err := time.Parse(time.RFC3339, since)
	switch {
	case err != nil:
		return o, fmt.Errorf("--since: %q is neither how long ago (10m), nor a time (2026-11-21T10:00:00Z), nor a cursor", since)
	case at.After(now):
		return o, fmt.Errorf("--since %s is in the future", since)
	}
	o.Since = at
	return o, nil
}

// quietTime is how long the bus may tell nothing while there is more.
const quietTime = 10 * time.Second

// printKept prints what the bus keeps when it is called, from where w begins; if
// it does not say where, all of it. It filters here, because of an event that
// does not match nobody says that it was passed.
func (n *node) printKept(ctx context.Context, w watch, p *eventPrinter) error {
	match, err := filter.Parse(w.filters...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(quietTime, func() {
		cancel(fmt.Errorf("the bus tells nothing for %v: %w", quietTime, errdefs.ErrUnavailable))
	})
	defer quiet.Stop()
	end, err := n.endOfEvents(ctx)
	if err != nil {
		return firstCause(ctx, err)
	}
	o := w.options
	if o.After == nil && o.Since.IsZero() {
		o.Since = time.Unix(0, 1)
	}
	at := event.Cursor{}
	o.Reached = func(c event.Cursor) { at = c }
	events, err := n.begin(ctx, o, p)
	if err != nil || isPast(at, end) {
		return firstCause(ctx, err)
	}
	for e, err := range events {
		quiet.Reset(quietTime)
		var gap *event.Gap
		switch {
		case errors.As(err, &gap):
			at, err = gap.To, p.gap(err)
		case err == nil:
			if at = (event.Cursor{Epoch: e.Epoch, Sequence: e.Sequence}); at.Epoch == end.Epoch && at.Sequence > end.Sequence {
				return nil
			}
			if match.Match(e.Fields()) {
				err = p.event(e)
			}
		}
		if err != nil || isPast(at, end) {
			return firstCause(ctx, err)
		}
	}
	return nil
}

// endOfEvents returns the place of the last event there is: behind it a
// subscription begins that asks for nothing of before.
func (n *node) endOfEvents(ctx context.Context) (end event.Cursor, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // nobody reads it
	_, err = n.client.Follow(ctx, event.SubscribeOptions{Reached: func(c event.Cursor) { end = c }})
	if err == nil && end.Epoch == "" {
		err = fmt.Errorf("this bus keeps no events, or does not say which: %w", errdefs.ErrNotImplemented)
	}
	return end, err
}

// isPast says whether there is nothing more to print: all of it was told, or the
// stream is another by now.
func isPast(at, end event.Cursor) bool {
	return at.Epoch != "" && (at.Epoch != end.Epoch || at.Sequence >= end.Sequence)
}

// firstCause is why ctx ended, if it did and err is about that.
func firstCause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
