package taskd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/task"
)

// handoverTime is how long a new task waits for the one before it to leave.
const handoverTime = 5 * time.Second

func (s *Store) createTask(ctx context.Context, ns string, r task.CreateRequest) (uint32, error) {
	c, err := containerStore{s, ns}.Get(ctx, r.ContainerID)
	if err != nil {
		return 0, err
	}
	if r.Checkpoint != nil {
		return 0, fmt.Errorf("restore from a checkpoint: %w", errdefs.ErrNotImplemented)
	}
	runtime := c.Runtime.Name
	if r.RuntimePath != "" {
		runtime = r.RuntimePath
	}
	binary, err := s.run.find(runtime)
	if err != nil {
		return 0, fmt.Errorf("failed to resolve runtime path: %w", err)
	}
	b, err := s.bundle(ns, c.ID)
	if err != nil {
		return 0, err
	}
	l := s.newLive(b, record{Instance: newInstance(), State: creating, Binary: binary, IO: r.IO})
	l.phase, l.tended = beginning, true
	if err := s.reserve(ctx, l); err != nil {
		return 0, err
	}
	pid, err := s.create(ctx, l, r, c)
	switch {
	case errors.Is(err, errTaken):
		s.forget(l) // what is there is not ours to remove
	case err != nil:
		s.undo(l)
	}
	if err != nil {
		return 0, fmt.Errorf("task %s: %w", l.id, err)
	}
	return pid, nil
}

func newInstance() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// reserve takes the id. It waits for a task that may be on its way out: one that
// is being deleted, and one that is not created yet and may never be. Who is
// told that there is a task is to find one.
func (s *Store) reserve(ctx context.Context, l *live) error {
	ctx, cancel := context.WithTimeout(ctx, handoverTime)
	defer cancel()
	for {
		s.mu.Lock()
		old := s.tasks[l.key()]
		var v view
		if old != nil {
			v = old.look()
		}
		if old == nil || v.phase == dead {
			s.tasks[l.key()] = l
			delete(s.kept, l.key())
			leaving := s.leaving[l.key()]
			s.mu.Unlock()
			if leaving != nil {
				select {
				case <-leaving:
				case <-ctx.Done():
				}
			}
			return s.replace(ctx, old, l)
		}
		s.mu.Unlock()
		if v.phase != beginning && v.rec.State != deleting {
			return fmt.Errorf("task %s: %w", l.id, errdefs.ErrAlreadyExists)
		}
		select {
		case <-v.changed:
		case <-ctx.Done():
			return fmt.Errorf("task %s is being created or deleted: %w", l.id, errdefs.ErrAlreadyExists)
		}
	}
}

// replace forgets the dead task before l, if there is one.
func (s *Store) replace(ctx context.Context, old, l *live) error {
	if old == nil {
		return nil
	}
	err := s.db.Release(ctx, func(tx *kv.Tx) error { return tx.Delete(deadKey(l.namespace, l.id)) })
	if err != nil {
		s.mu.Lock()
		s.tasks[l.key()] = old
		s.mu.Unlock()
		return err
	}
	old.end()
	return nil
}

// create takes a task from its intent to the moment its creator may be told.
// The order is the promise: what may exist is on disk before it can exist.
func (s *Store) create(ctx context.Context, l *live, r task.CreateRequest, c container.Container) (uint32, error) {
	rec := l.record()
	if err := l.make(s.disk, c.Spec.Data, rec); err != nil {
		return 0, err
	}
	options := r.Options
	if options == nil {
		options = c.Runtime.Options
	}
	if err := s.listen(l); err != nil {
		return 0, err
	}
	start, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	a, err := s.run.start(start, launch{l.bundle, rec.Binary, options}, func(p process) error {
		rec.Shim = p
		l.setRecord(rec)
		return l.save(s.disk, rec)
	})
	if err != nil {
		return 0, err
	}
	if err := l.saveAddress(s.disk, a); err != nil {
		return 0, err
	}
	connect, cancel := context.WithTimeout(ctx, seekTime)
	defer cancel()
	shim, err := s.run.connect(connect, l.namespace, a)
	if err != nil {
		// No kind but this: a shim that is missing is no missing container.
		return 0, fmt.Errorf("cannot reach its shim: %v: %w", err, errdefs.ErrUnavailable)
	}
	pid, err := s.fill(ctx, l, shim, task.ShimCreate{
		ID:      l.id,
		Bundle:  l.dir,
		Rootfs:  r.Rootfs,
		IO:      r.IO,
		Options: options,
	})
	if err != nil {
		shim.Close() // which ends what the shim still does for us
		return 0, err
	}
	l.reach(shim)
	s.wg.Go(func() { s.tend(l, shim) })
	return pid, nil
}

// fill has the shim make the container and writes down that it did.
func (s *Store) fill(ctx context.Context, l *live, shim task.Shim, r task.ShimCreate) (uint32, error) {
	ctx, cancel := context.WithTimeout(ctx, createTime)
	defer cancel()
	pid, err := shim.Create(ctx, r)
	if err != nil {
		return 0, err
	}
	rec := l.record()
	if rec.Shim == (process{}) {
		if rec.Shim, err = s.whoIs(ctx, l, shim); err != nil {
			return 0, err
		}
	}
	rec.State, rec.Pid = created, pid
	if err := l.save(s.disk, rec); err != nil {
		return 0, err
	}
	l.setRecord(rec)
	return pid, nil
}

// whoIs asks a shim that started itself for its process. One that does not say
// is not known: its death is seen by its socket alone.
func (s *Store) whoIs(ctx context.Context, l *live, shim task.Shim) (process, error) {
	info, err := shim.Info(ctx, l.id)
	if err != nil {
		return process{}, err
	}
	if info.ShimPid == 0 {
		return process{}, nil
	}
	p, err := s.run.identify(int(info.ShimPid))
	if errors.Is(err, errdefs.ErrNotFound) {
		return process{}, nil // in a pid namespace of its own
	}
	return p, err
}

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
