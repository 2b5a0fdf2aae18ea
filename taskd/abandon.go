package taskd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/task"
)

// undo removes what a create that failed has left: at once if it can, or else
// until it is done. Its creator may have gone, so that it has time of its own.
func (s *Store) undo(l *live) {
	ctx, cancel := context.WithTimeout(s.ctx, deleteTime)
	defer cancel()
	err := s.abandon(ctx, l)
	if err == nil {
		s.forget(l)
		return
	}
	s.wg.Go(func() { s.abandonAtLast(l) })
}

// abandonAtLast tries until a task that nobody was told of is gone.
func (s *Store) abandonAtLast(l *live) {
	for pause := range pauses() {
		ctx, cancel := context.WithTimeout(s.ctx, deleteTime)
		err := s.abandon(ctx, l)
		cancel()
		if err == nil {
			s.forget(l)
			return
		}
		if s.ctx.Err() == nil {
			s.log.Warn("a task that was not created has left something: trying again", "namespace", l.namespace, "task", l.id, "err", err)
		}
		if !s.pause(pause) {
			return
		}
	}
}

// abandon removes a task that nobody has been told of, and its shim. That it
// may is certain: its record says that it was never created.
func (s *Store) abandon(ctx context.Context, l *live) error {
	rec := l.record()
	if _, err := l.load(); errors.Is(err, fs.ErrNotExist) {
		return s.discard(l.bundle, rec.Instance) // it never had a shim
	}
	launch := launch{bundle: l.bundle, binary: rec.Binary}
	a, err := l.address()
	asked := err == nil // before that, a shim is not asked for anything
	shims, err := s.shimsOf(l)
	if err != nil {
		return err
	}
	ended := asked && s.askToEnd(ctx, l, a, shims)
	if err := s.endShims(ctx, l, shims); err != nil {
		return err
	}
	// Our own shim ends by itself when it has nothing left to remove.
	if !launch.own() || asked && !ended {
		if err := s.cleanUp(ctx, launch); err != nil {
			s.log.Warn("the shim's delete command failed", "namespace", l.namespace, "task", l.id, "err", err)
		}
	}
	return s.discard(l.bundle, rec.Instance)
}

// shimsOf returns the processes that are the shim of a task: the one in its
// record, or if there was no time to record it, whoever works in its bundle.
func (s *Store) shimsOf(l *live) ([]process, error) {
	if p := l.record().Shim; p != (process{}) {
		return []process{p}, nil
	}
	return s.run.strays(l.dir)
}

// askToEnd has a shim remove its task and end, and reports whether it said yes
// and did. A shim that is still undoing what it was asked for does not end: it
// is asked again.
func (s *Store) askToEnd(ctx context.Context, l *live, a task.ShimAddress, shims []process) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*shutdownTime)
	defer cancel()
	told := false
	for pause := range pauses() {
		told = s.emptyShim(ctx, l, a) == nil || told
		ended, err := s.allEnded(ctx, shims, pause)
		if ended || err != nil || ctx.Err() != nil {
			return told && ended
		}
	}
	return false
}

// allEnded reports whether processes end, each within limit.
func (s *Store) allEnded(ctx context.Context, all []process, limit time.Duration) (bool, error) {
	for _, p := range all {
		c, err := s.run.watch(p)
		switch {
		case errors.Is(err, errdefs.ErrNotFound):
		case err != nil:
			return false, err
		case !within(ctx, c, limit):
			return false, nil
		}
	}
	return true, nil
}

// emptyShim asks a shim to remove its task and to end.
func (s *Store) emptyShim(ctx context.Context, l *live, a task.ShimAddress) error {
	shim, err := s.run.connect(ctx, l.namespace, a)
	if err != nil {
		return err
	}
	defer shim.Close()
	if shim.Kill(ctx, l.id, "", uint32(syscall.SIGKILL), true) == nil {
		shim.Wait(ctx, l.id, "")
	}
	shim.Delete(ctx, l.id)
	return shim.Shutdown(ctx, l.id)
}

// endShims ends the shim of a task that nobody has been told of, unless another
// task lives in it.
func (s *Store) endShims(ctx context.Context, l *live, shims []process) error {
	for _, p := range shims {
		if s.shared(l, p) {
			continue
		}
		ended, err := s.run.watch(p)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if err := s.run.signal(p, syscall.SIGKILL); err != nil {
			return err
		}
		if !within(ctx, ended, shutdownTime) {
			return fmt.Errorf("shim %d does not end: %w", p.Pid, errdefs.ErrUnavailable)
		}
	}
	return nil
}

// shared reports whether another task has the same shim.
func (s *Store) shared(l *live, p process) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.tasks {
		if other != l && other.record().Shim == p {
			return true
		}
	}
	return false
}

// within reports whether c is closed before limit and ctx are over.
func within(ctx context.Context, c <-chan struct{}, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case <-c:
		return true
	case <-ctx.Done():
		return false
	}
}
