package taskd

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/task"
)

const (
	lookTime  = 5 * time.Second  // for the labels of a namespace
	lookFresh = 10 * time.Second // how old they are at most when a task starts
)

// A glance is the labels of a task's namespace, asked for while the task is
// made: when it starts they are there, and its start waits for nobody.
type glance struct {
	done   chan struct{} // closed when the others are set
	labels map[string]string
	err    error
	at     time.Time
}

// glanceAt begins one. It is nil if there is nobody to ask.
func (s *Store) glanceAt(ns string) *glance {
	if s.namespaces == nil {
		return nil
	}
	g := &glance{done: make(chan struct{})}
	s.wg.Go(func() {
		defer close(g.done)
		g.labels, g.err = s.namespaceLabels(s.ctx, ns)
		g.at = time.Now()
	})
	return g
}

func (s *Store) namespaceLabels(ctx context.Context, ns string) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	info, err := s.namespaces.Get(ctx, ns)
	return info.Labels, err
}

// labelsAround returns the labels of a task's namespace. A start that cannot
// learn its gates is none.
func (s *Store) labelsAround(ctx context.Context, l *live) (map[string]string, error) {
	if s.namespaces == nil {
		return nil, nil
	}
	if g := l.around; g != nil { // else it was found after a restart
		select {
		case <-g.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if g.err == nil && time.Since(g.at) < lookFresh {
			return g.labels, nil
		}
	}
	labels, err := s.namespaceLabels(ctx, l.namespace)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("task %s: the gates of namespace %s are not known: %v: %w", l.id, l.namespace, err, errdefs.ErrUnavailable)
	}
	return labels, err
}

// pass returns when every gate of a task lets it start. Nothing is held and
// nothing is written meanwhile: a task whose gates are asked is created, and
// stays so whatever they say and whoever ends.
func (s service) pass(ctx context.Context, l *live) error {
	names, r, err := s.gatesOf(ctx, l)
	if err != nil || len(names) == 0 {
		return err
	}
	p, err := s.get(ctx, l, "")
	switch {
	case err != nil:
		return err
	case p.Status == task.Unknown:
		return fmt.Errorf("task %s: its shim does not say whether gates are to be asked: %w", l.id, errdefs.ErrUnavailable)
	case p.Status != task.Created:
		return nil // its shim says what is wrong with starting it
	case s.gates == nil:
		return fmt.Errorf("task %s has gates %q, and nobody asks them: %w", l.id, names, errdefs.ErrFailedPrecondition)
	}
	r.Pid = int(p.Pid)
	return s.askAll(ctx, l, names, r)
}

// gatesOf returns the gates of a task, and what they are asked.
func (s service) gatesOf(ctx context.Context, l *live) ([]string, gate.Request, error) {
	c, err := containerStore(s).Get(ctx, l.id)
	if err != nil {
		return nil, gate.Request{}, err
	}
	around, err := s.labelsAround(ctx, l)
	if err != nil {
		return nil, gate.Request{}, err
	}
	if _, err := gate.Names(around); err != nil {
		return nil, gate.Request{}, fmt.Errorf("namespace %s: %w", l.namespace, err)
	}
	names, err := gate.Names(around, c.Labels)
	if err != nil {
		return nil, gate.Request{}, fmt.Errorf("container %s: %w", l.id, err)
	}
	return names, gate.Request{Namespace: l.namespace, Container: l.id, Labels: c.Labels}, nil
}

// askAll asks all gates at once, for as long as there is a process to start.
// The first that does not pass is the error.
func (s service) askAll(ctx context.Context, l *live, names []string, r gate.Request) error {
	outer := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer context.AfterFunc(s.waiting, func() {
		cancel(fmt.Errorf("taskd is stopping: %w", errdefs.ErrUnavailable))
	})()
	var ended sync.WaitGroup
	defer ended.Wait()
	defer cancel(nil)
	ended.Go(func() {
		_, err := s.wait(ctx, l, "")
		if err == nil {
			err = fmt.Errorf("it ended before it started: %w", errdefs.ErrFailedPrecondition)
		}
		cancel(err)
	})
	patience := gate.Patience{Answer: s.cfg.gateTime(), Absent: s.cfg.gateAbsentTime()}
	var asked sync.WaitGroup
	for _, name := range names {
		asked.Go(func() {
			defer s.lobby.enter(gate.Wait{Gate: name, Namespace: l.namespace, Container: l.id, Since: time.Now().UTC()})()
			if err := patience.Ask(ctx, s.gates, name, r); err != nil {
				cancel(err)
			}
		})
	}
	asked.Wait()
	switch err := context.Cause(ctx); {
	case outer.Err() != nil:
		return outer.Err()
	case err != nil:
		return fmt.Errorf("container %s does not start: %w", l.id, err)
	}
	return nil
}
