package netd

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/task"
)

// Times of what is looked at again.
const (
	sweepTime  = 5 * time.Minute // everything
	pauseFirst = 200 * time.Millisecond
	pauseMax   = 30 * time.Second // after a failure
)

// Subjects are those of the events that may end an attachment, on the bus.
func Subjects() []string {
	return []string{"gantry.v1.*.tasks.exit", "gantry.v1.*.tasks.delete", "gantry.v1.*.containers.delete"}
}

// Hear takes an event. It is only the reason to look: what is true is asked of
// taskd, so that it does not matter whether an event is late, told twice, or
// about a task before this one. An event is heard when it is known where to
// look: what a crash then leaves undone is found by its record.
func (s *Store) Hear(_ context.Context, e event.Event) error {
	k := key{e.Namespace, e.Subject}
	if e.Topic == "/tasks/exit" {
		// Of an exec, whose container goes on.
		if id, ok := e.Fields()([]string{"event", "id"}); ok && id != e.Subject {
			return nil
		}
	}
	// One that is only being connected may have ended before it is.
	if s.get(k) != nil || s.turns.busy(k) {
		s.soon(k)
	}
	return nil
}

// Relist has everything looked at: events were missed, or this is the start.
func (s *Store) Relist(context.Context, *event.Gap) error {
	s.mu.Lock()
	s.swept = time.Time{}
	s.mu.Unlock()
	s.stir()
	return nil
}

// Reconcile undoes attachments whose tasks have ended, and those that were only
// begun when netd ended, until ctx does. What it cannot undo it tries again.
func (s *Store) Reconcile(ctx context.Context) error {
	s.collect(ctx)
	g := errgroup.Group{}
	g.SetLimit(pluginsMax)
	for {
		k, err := s.next(ctx)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		g.Go(func() error {
			s.settle(ctx, k)
			return nil
		})
	}
}

// next waits for the next container that is due.
func (s *Store) next(ctx context.Context) (key, error) {
	for {
		k, ok, wait := s.pick(time.Now())
		if ok {
			return k, ctx.Err()
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return key{}, ctx.Err()
		case <-s.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// pick takes a container that is due, or says how long none is.
func (s *Store) pick(now time.Time) (k key, ok bool, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.swept) >= sweepTime {
		s.swept = now
		for k := range s.records {
			s.due[k] = now
		}
	}
	wait = sweepTime - now.Sub(s.swept)
	for k, at := range s.due {
		if !at.After(now) {
			delete(s.due, k)
			return k, true, 0
		}
		wait = min(wait, at.Sub(now))
	}
	return key{}, false, wait
}

// settle looks at a container once.
func (s *Store) settle(ctx context.Context, k key) {
	err := s.look(ctx, k)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		s.log.Warn("an attachment cannot be looked after now", "namespace", k.namespace, "container", k.container, "err", err)
		s.later(k)
		return
	}
	s.mu.Lock()
	delete(s.tries, k)
	s.mu.Unlock()
}

func (s *Store) look(ctx context.Context, k key) error {
	release, err := s.turns.take(ctx, k)
	if err != nil {
		return err
	}
	defer release()
	r := s.get(k)
	if r == nil {
		return nil
	}
	if r.State == attached {
		over, err := s.over(ctx, r)
		if err != nil || !over {
			return err
		}
	}
	return s.detach(context.WithoutCancel(ctx), r)
}

// over says whether the task of an attachment has ended for certain. Its first
// process counts: what it published is not to be held by a task that is only
// not deleted yet.
func (s *Store) over(ctx context.Context, r *record) (bool, error) {
	p, err := s.taskOf(ctx, r.key())
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		return true, nil
	case err != nil:
		return false, err
	case p.Status == task.Unknown:
		return false, nil
	}
	return p.Status == task.Stopped || p.Pid != r.Pid, nil
}

func (s *Store) soon(k key) {
	s.mu.Lock()
	s.due[k] = time.Now()
	s.mu.Unlock()
	s.stir()
}

// later has a container looked at again, each time after a longer pause.
func (s *Store) later(k key) {
	s.mu.Lock()
	pause := min(pauseFirst<<min(s.tries[k], 10), pauseMax)
	s.tries[k]++
	s.due[k] = time.Now().Add(pause)
	s.mu.Unlock()
	s.stir()
}

func (s *Store) stir() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
