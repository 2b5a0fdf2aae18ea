package eventbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/filter"
)

// answerReads begins to answer those who read events by NATS. The function that
// it returns does it, until ctx ends.
func (b *Bus) answerReads(ctx context.Context) (serve func(), err error) {
	// A connection of its own: what is told to many does not delay what is
	// acknowledged to one.
	conn, err := eventnats.In(b.server, roleBus, b.roles.byName[roleBus].secret)
	if err != nil {
		return nil, err
	}
	asked, err := conn.Asked(ctx)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return func() {
		defer conn.Close()
		var reads sync.WaitGroup
		defer reads.Wait()
		for a := range asked {
			ctx, now, err := b.readers.enter(ctx, a.Plugin, a.Name)
			if err != nil {
				a.End(event.Cursor{}, err)
				continue
			}
			reads.Go(func() {
				at, err := b.read(ctx, a, now)
				a.End(at, err)
				now.leave(err)
			})
		}
	}, nil
}

// read answers one read, and returns where the next begins. One whose reader is
// gone goes on until its time is over.
func (b *Bus) read(ctx context.Context, a *eventnats.Asked, now *reading) (event.Cursor, error) {
	match, err := b.mayRead(a)
	if err != nil {
		return event.Cursor{}, err
	}
	over := time.NewTimer(a.Wait)
	defer over.Stop()
	// Longer than the wait: what there is already is told without one.
	enough, cancel := context.WithTimeout(ctx, a.Wait+tellTime)
	defer cancel()
	at, err := b.begin(enough, a.Options)
	if err != nil {
		return event.Cursor{}, ended(ctx, err)
	}
	a.Begin(at)
	for told, bytes := 0, 0; ; {
		now.reached(at)
		events, err := b.next(enough, over.C, at.Sequence+1)
		if errors.Is(err, errOver) || ctx.Err() == nil && enough.Err() != nil {
			return at, nil
		}
		if err != nil {
			return at, ended(ctx, err)
		}
		for _, e := range events {
			if e.ID != "" && match(e) {
				if err := a.Tell(e); err != nil {
					return at, err
				}
				told, bytes = told+1, bytes+size(e)
			}
			at.Sequence = e.Sequence
			if told >= a.Max || bytes >= eventnats.ReadBytes {
				now.reached(at)
				return at, nil
			}
		}
	}
}

// tellTime is how long a read may take beside the time that it waits.
const tellTime = 3 * time.Second

// ended is why a read whose context is ctx ended with err.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("the read was ended: %v: %w", context.Cause(ctx), errdefs.ErrUnavailable)
	}
	return err
}

// mayRead returns what a read is told, which is no more than the asker was
// granted.
func (b *Bus) mayRead(a *eventnats.Asked) (match func(event.Event) bool, err error) {
	f, err := filter.Parse(a.Options.Filters...)
	if err != nil {
		return nil, err
	}
	granted, subjects := b.granted(a.Plugin), a.Subjects
	for _, s := range subjects {
		if !eventnats.Covers(granted, s) {
			return nil, fmt.Errorf("%s may read %q, not %.100q: %w", asker(a.Plugin), granted, s, errdefs.ErrPermissionDenied)
		}
	}
	if len(subjects) == 0 {
		subjects = granted
	}
	if slices.Contains(subjects, eventnats.Subjects) { // all of them
		return func(e event.Event) bool { return f.Match(e.Fields()) }, nil
	}
	return func(e event.Event) bool {
		return eventnats.Covers(subjects, eventnats.Subject(e.Namespace, e.Topic)) && f.Match(e.Fields())
	}, nil
}

// granted are the subjects of events that an asker may read.
func (b *Bus) granted(plugin string) []string {
	if plugin == "" {
		return []string{eventnats.Subjects}
	}
	for _, p := range b.cfg.Plugins {
		if p.Name == plugin {
			return p.Subscribe
		}
	}
	return nil
}

// begin returns where a subscription begins. It asks the stream only if the
// window does not know.
func (b *Bus) begin(ctx context.Context, o event.SubscribeOptions) (event.Cursor, error) {
	if c := o.After; c != nil && o.Since.IsZero() && c.Epoch == b.epoch && b.window.has(c.Sequence) {
		return *c, nil
	}
	return b.stream.Begin(ctx, o)
}
