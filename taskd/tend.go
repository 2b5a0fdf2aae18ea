package taskd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/task"
)

// A shim that does not answer is tried again, first after pauseMin.
const (
	pauseMin = 100 * time.Millisecond
	pauseMax = 30 * time.Second
)

// deathTime is how long a process may take to end after its connection has.
const deathTime = 2 * time.Second

func pauses() iter.Seq[time.Duration] {
	return func(yield func(time.Duration) bool) {
		for p := pauseMin; yield(p); p = min(2*p, pauseMax) {
		}
	}
}

// pause waits, and reports whether there is still something to wait for.
func (s *Store) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// Recover finds out what became of the tasks that Open found, all at once, and
// returns when ctx ends. What is certainly dead is cleaned up; what does not
// answer is kept, and tried again.
func (s *Store) Recover(ctx context.Context) error {
	s.mu.Lock()
	for _, dir := range s.trash {
		s.wg.Go(func() { s.release(dir) })
		s.wg.Go(func() { s.dumpFound(dir) })
	}
	s.trash = nil
	for _, l := range s.tasks {
		if l.look().phase != dead && !l.tended {
			l.tended = true
			s.wg.Go(func() { s.release(l.dir, l.trash(l.record().Instance)) })
			s.wg.Go(func() { s.recoverTask(l) })
		}
	}
	s.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
	return nil
}

func (s *Store) recoverTask(l *live) {
	if l.record().State == creating {
		s.abandonAtLast(l)
		return
	}
	if err := s.listen(l); err != nil {
		s.log.Warn("a shim's log cannot be read", "namespace", l.namespace, "task", l.id, "err", err)
	}
	s.tend(l, nil)
}

// tend keeps a task connected to its shim until the task is gone, its shim is
// certainly dead, or taskd closes. shim may be nil.
func (s *Store) tend(l *live, shim task.Shim) {
	for {
		if shim == nil {
			if shim = s.seekAtLast(l); shim == nil {
				return
			}
			l.reach(shim)
			s.resume(l)
		}
		select {
		case <-shim.Done():
			l.become(seeking, nil)
			shim = nil
		case <-l.ctx.Done():
			if s.ctx.Err() != nil {
				shim.Close()
			}
			return // whoever ended the task closes the connection
		}
	}
}

// resume goes on with a deletion that was begun before a restart.
func (s *Store) resume(l *live) {
	if l.record().State != deleting {
		return
	}
	s.wg.Go(func() {
		if _, err := s.joinDelete(s.ctx, l); err != nil {
			s.log.Warn("a deletion that was begun cannot be completed", "namespace", l.namespace, "task", l.id, "err", err)
		}
	})
}

// errDead is that a shim is certainly dead.
var errDead = errors.New("shim is dead")

// seekAtLast looks for a task's shim until it answers. It returns nil if there
// is no more to be found.
func (s *Store) seekAtLast(l *live) task.Shim {
	for pause := range pauses() {
		shim, err := s.seek(l)
		v := l.look()
		switch {
		case s.ctx.Err() != nil || v.phase == gone:
			if err == nil {
				shim.Close()
			}
			return nil
		case err == nil:
			if v.phase == mute {
				s.log.Info("a shim answers again", "namespace", l.namespace, "task", l.id)
			}
			return shim
		case errors.Is(err, errDead):
			s.bury(l)
			return nil
		}
		if v.phase != mute {
			s.log.Warn("a shim does not answer: its task is kept", "namespace", l.namespace, "task", l.id, "err", err)
			l.become(mute, nil)
		}
		if !s.pause(pause) {
			return nil
		}
	}
	return nil
}

// seek connects to a task's shim and hears it answer. The error is errDead only
// on proof: nobody listens, and the process that did has ended.
func (s *Store) seek(l *live) (task.Shim, error) {
	ctx, cancel := context.WithTimeout(s.ctx, seekTime)
	defer cancel()
	a, err := l.address()
	if err != nil {
		return nil, s.proveDead(ctx, l, err)
	}
	shim, err := s.run.connect(ctx, l.namespace, a)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil, s.proveDead(ctx, l, err)
	}
	if err != nil {
		return nil, err
	}
	// A shim that says it has no such task is alive, and what is left of the
	// task is to be deleted: the deletion had come that far.
	_, err = shim.Get(ctx, l.id, "")
	if errors.Is(err, errdefs.ErrNotFound) {
		rec := l.record()
		rec.State = deleting
		err = l.save(s.disk, rec)
		l.setRecord(rec)
	}
	if err != nil {
		shim.Close()
		return nil, err
	}
	return shim, nil
}

// proveDead returns errDead if the shim's process has ended, or else why.
func (s *Store) proveDead(ctx context.Context, l *live, why error) error {
	p := l.record().Shim
	if p == (process{}) {
		return fmt.Errorf("%w: %w", errDead, why) // nothing but its socket was ever known of it
	}
	ended, err := s.run.watch(p)
	if errors.Is(err, errdefs.ErrNotFound) || err == nil && within(ctx, ended, deathTime) {
		return fmt.Errorf("%w: %w", errDead, why)
	}
	return errors.Join(fmt.Errorf("process %d lives, but: %w", p.Pid, why), err)
}
