package taskd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/task"
)

// flushTime is how long our own shim may still tell its last events.
const flushTime = 20 * time.Second

// keptMax is how many results of deletions are kept for callers who were not
// there to take them.
const keptMax = 256

// deleteTask deletes a task, or joins the deletion that is under way. It goes
// on when the caller leaves, who finds the result by asking again.
func (s *Store) deleteTask(ctx context.Context, ns, id string) (task.Exit, error) {
	l, err := s.find(ctx, ns, id)
	if err != nil {
		if exit, ok := s.takeKept(key{ns, id}); ok && errors.Is(err, errdefs.ErrNotFound) {
			return exit, nil
		}
		return task.Exit{}, err
	}
	exit, err := s.joinDelete(ctx, l)
	if err == nil {
		s.takeKept(l.key())
	}
	return exit, err
}

func (s *Store) joinDelete(ctx context.Context, l *live) (task.Exit, error) {
	return l.deletes.join(ctx, struct{}{}, s.wg.Go, func() (task.Exit, error) {
		ctx, cancel := context.WithTimeout(s.ctx, deleteTime)
		defer cancel()
		exit, err := s.delete(ctx, l)
		if err == nil {
			s.keep(l.key(), exit)
		}
		return exit, err
	})
}

func (s *Store) keep(k key, e task.Exit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for old := range s.kept {
		if len(s.kept) < keptMax {
			break
		}
		delete(s.kept, old)
	}
	s.kept[k] = e
}

func (s *Store) takeKept(k key) (task.Exit, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.kept[k]
	delete(s.kept, k)
	return e, ok
}

// delete takes a task from wherever it is to its end. Each step may be done
// again: it is what a retry does, and a daemon that finds the record.
func (s *Store) delete(ctx context.Context, l *live) (task.Exit, error) {
	for {
		shim, err := l.connected(ctx)
		v := l.look()
		if v.phase == dead {
			return v.exit, s.forgetDead(ctx, l)
		}
		if exit, ok := s.takeKept(l.key()); ok && v.phase == gone {
			return exit, nil // it died meanwhile
		}
		if err != nil {
			return task.Exit{}, err
		}
		if err := s.intend(ctx, l, shim); err != nil {
			return task.Exit{}, err
		}
		call, cancel := context.WithTimeout(ctx, callTime)
		exit, err := shim.Delete(call, l.id)
		cancel()
		if errors.Is(err, errdefs.ErrUnavailable) && isDone(shim) {
			continue // what became of the shim decides
		}
		if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return task.Exit{}, because(ctx, shim, l.id, "", err, task.Running, task.Paused, task.Pausing)
		}
		if rec := l.record(); err != nil && rec.Exit != nil {
			exit = *rec.Exit // it was deleted before, and then we ended
		}
		return exit, s.leave(ctx, l, shim)
	}
}

// intend writes down that a stopped task is to be deleted, and how it ended:
// once the shim has deleted it nobody else knows.
func (s *Store) intend(ctx context.Context, l *live, shim task.Shim) error {
	rec := l.record()
	if rec.State == deleting {
		return nil
	}
	short, cancel := context.WithTimeout(ctx, stateTime)
	defer cancel()
	p, err := shim.Get(short, l.id, "")
	if err != nil || p.Status != task.Stopped {
		return nil // the shim says what is wrong with deleting it
	}
	rec.State, rec.Exit = deleting, &p.Exit
	if err := l.save(s.disk, rec); err != nil {
		return err
	}
	l.setRecord(rec)
	return nil
}

// leave removes a task that its shim has deleted. From here on it does not
// exist for anybody.
func (s *Store) leave(ctx context.Context, l *live, shim task.Shim) error {
	rec := l.record()
	launch := launch{bundle: l.bundle, binary: rec.Binary}
	if !launch.own() {
		return s.leaveOther(ctx, l, shim, launch)
	}
	// The bundle first: without it nothing is left to be found or resumed.
	// The shim needs it no more.
	a, err := l.address()
	if err != nil {
		return err
	}
	trash, err := l.remove(s.disk, rec.Instance)
	if err != nil {
		return err
	}
	s.mayLeave(trash)
	out := make(chan struct{})
	s.mu.Lock()
	s.leaving[l.key()] = out
	s.mu.Unlock()
	s.forget(l)
	s.wg.Go(func() {
		s.dismiss(l, shim, a)
		s.mu.Lock()
		if s.leaving[l.key()] == out {
			delete(s.leaving, l.key())
		}
		s.mu.Unlock()
		close(out)
		s.outlive(rec.Shim)
		s.dump(trash)
	})
	return nil
}

// dismiss ends a shim that has no task and returns when another may take its
// place.
func (s *Store) dismiss(l *live, shim task.Shim, a task.ShimAddress) {
	ctx, cancel := context.WithTimeout(s.ctx, shutdownTime)
	defer cancel()
	if err := shim.Shutdown(ctx, l.id); err != nil {
		s.log.Warn("a shim does not end when asked to", "namespace", l.namespace, "task", l.id, "err", err)
	}
	shim.Close()
	ended, err := s.run.watch(l.record().Shim)
	if err != nil {
		return
	}
	socket := strings.TrimPrefix(a.Address, "unix://")
	for wait := time.Millisecond; ctx.Err() == nil; wait *= 2 {
		if _, err := os.Lstat(socket); err != nil || within(ctx, ended, wait) {
			return
		}
	}
}

// terminate asks a shim that may not listen any more to end when it can.
func (s *Store) terminate(p process) {
	if err := s.run.signal(p, syscall.SIGTERM); err != nil {
		s.log.Warn("a shim without a task cannot be told to end", "pid", p.Pid, "err", err)
	}
}

// outlive waits until a shim that was told to end has told its last events, and
// ends it if it does not.
func (s *Store) outlive(p process) {
	ended, err := s.run.watch(p)
	if err != nil || within(s.ctx, ended, flushTime) || s.ctx.Err() != nil {
		return
	}
	s.log.Warn("a shim without a task does not end: killing it", "pid", p.Pid)
	if err := s.run.signal(p, syscall.SIGKILL); err != nil {
		s.log.Warn("a shim without a task cannot be killed", "pid", p.Pid, "err", err)
	}
}

// leaveOther does what containerd's shims expect: shutdown, then their delete
// command, then the bundle.
func (s *Store) leaveOther(ctx context.Context, l *live, shim task.Shim, launch launch) error {
	s.forget(l) // what happens to the connection now is no death
	down, cancel := context.WithTimeout(ctx, shutdownTime)
	defer cancel()
	if err := shim.Shutdown(down, l.id); err != nil {
		s.log.Warn("a shim does not end when asked to", "namespace", l.namespace, "task", l.id, "err", err)
	}
	shim.Close()
	if err := s.cleanUp(ctx, launch); err != nil {
		s.log.Warn("the shim's delete command failed", "namespace", l.namespace, "task", l.id, "err", err)
	}
	if err := s.discard(l.bundle, l.record().Instance); err != nil {
		s.log.Warn("a bundle cannot be removed", "dir", l.dir, "err", err)
	}
	return nil
}

// cleanUp runs a shim's delete command for its effect.
func (s *Store) cleanUp(ctx context.Context, l launch) error {
	_, err := s.clean(ctx, l)
	return err
}

// forgetDead removes the record of a death: its owner has seen it.
func (s *Store) forgetDead(ctx context.Context, l *live) error {
	err := s.db.Release(ctx, func(tx *kv.Tx) error { return tx.Delete(deadKey(l.namespace, l.id)) })
	if err != nil {
		return fmt.Errorf("task %s: %w", l.id, err)
	}
	s.forget(l)
	return nil
}
