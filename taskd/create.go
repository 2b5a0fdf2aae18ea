package taskd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
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
	l.around = s.glanceAt(ns)
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
	if err := s.hold(ctx, l); err != nil {
		return 0, err
	}
	if err := s.listen(l); err != nil {
		return 0, err
	}
	rootfs, err := s.activate(ctx, l, r.Rootfs)
	if err != nil {
		return 0, err
	}
	rec = l.record()
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
		Rootfs:  rootfs,
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
