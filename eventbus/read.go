package eventbus

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/filter"
)

// answerReads begins to answer those who read events by NATS. The function that
// it returns does it, until ctx ends. There is a connection for operators and one
// in the account of each plugin: who asks is known by where, and what is told to
// many, or to a slow one, delays nobody else.
func (b *Bus) answerReads(ctx context.Context) (serve func(), err error) {
	var works []func()
	defer func() {
		if err != nil {
			for _, work := range works {
				work() // it ends with ctx
			}
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	add := func(role, plugin string, waiting int) error {
		conn, err := eventnats.In(b.server, role, b.roles.byName[role].secret)
		if err != nil {
			return err
		}
		asked, err := conn.Asked(ctx, waiting)
		if err != nil {
			conn.Close()
			return err
		}
		works = append(works, func() {
			defer conn.Close()
			b.answer(ctx, asked, plugin)
		})
		return nil
	}
	err = add(roleBus, "", readsMax)
	for _, p := range b.cfg.Plugins {
		if err == nil {
			err = add(readerOf(p), p.Name, 4*readsPluginMax) // to say no to
		}
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return func() {
		defer cancel()
		var answering sync.WaitGroup
		for _, work := range works {
			answering.Go(work)
		}
		answering.Wait()
	}, nil
}

// answer answers the reads of a plugin, or of operators, until ctx ends.
func (b *Bus) answer(ctx context.Context, asked iter.Seq[*eventnats.Asked], plugin string) {
	var reads sync.WaitGroup
	defer reads.Wait()
	for a := range asked {
		a.Plugin = plugin
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
	at, err := b.begin(a.Options)
	if err != nil {
		return event.Cursor{}, ended(ctx, err)
	}
	a.Begin(at)
	follow := b.follow(at)
	for told, bytes := 0, 0; ; {
		now.reached(at)
		events, err := follow.next(enough, over.C)
		if errors.Is(err, errOver) || ctx.Err() == nil && enough.Err() != nil {
			return at, nil
		}
		if err != nil {
			return at, ended(ctx, err)
		}
		for _, e := range events {
			if match(e) {
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
