package shim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/runner"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/shim/cgroup"
)

// Create implements runner.Tasks.
func (s *Shim) Create(ctx context.Context, r runner.CreateRequest) (uint32, error) {
	if err := ident.Check(r.ID); err != nil {
		return 0, fmt.Errorf("task id: %w", err)
	}
	if !filepath.IsAbs(r.Bundle) {
		return 0, fmt.Errorf("bundle %q: want an absolute path: %w", r.Bundle, errdefs.ErrInvalidArgument)
	}
	if r.Checkpoint != "" {
		return 0, fmt.Errorf("restore from a checkpoint: %w", errdefs.ErrNotImplemented)
	}
	if !s.queue.hasRoom() {
		return 0, fmt.Errorf("too many events that nobody takes: %w", errdefs.ErrResourceExhausted)
	}
	c := &container{shim: s, id: r.ID, bundle: r.Bundle, execs: map[string]*process{}}
	if err := s.reserve(c); err != nil {
		return 0, err
	}
	p, err := c.create(ctx, r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.containers, r.ID)
		s.idleLocked()
		return 0, fmt.Errorf("task %s: %w", r.ID, err)
	}
	c.init = p
	s.live++
	s.wg.Go(p.watch)
	return p.pid, nil
}

// reserve takes the id, so that of two Creates one is told so.
func (s *Shim) reserve(c *container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.leaving {
		return fmt.Errorf("task %s: the shim is ending: %w", c.id, errdefs.ErrUnavailable)
	}
	if s.containers[c.id] != nil {
		return fmt.Errorf("task %s: %w", c.id, errdefs.ErrAlreadyExists)
	}
	s.idle.Stop()
	s.containers[c.id] = c
	delete(s.kept, c.id)
	return nil
}

func (s *Shim) idleLocked() {
	if len(s.containers) == 0 && !s.ended {
		s.idle.Reset(idleTime)
	}
}

// create makes the container and its first process. What fails is undone.
func (c *container) create(ctx context.Context, r runner.CreateRequest) (_ *process, err error) {
	s := c.shim
	spec, err := readSpec(r.Bundle)
	if err != nil {
		return nil, err
	}
	c.hooks = len(spec.Hooks.Poststart) > 0
	c.runtime, err = newRuntime(s.cfg, r.Options, s.reaper)
	if err != nil {
		return nil, err
	}
	p := newProcess(c, "", r.Bundle, r.IO)
	defer func() {
		if err != nil {
			c.undo(p)
		}
	}()
	// The intent first: whoever finds the bundle without us knows what there
	// may be to remove.
	state := runtimeState{ID: c.id, Rootfs: len(r.Rootfs) > 0, Options: r.Options}
	if err := writeRecord(r.Bundle, runtimeRecord, state, false); err != nil {
		return nil, err
	}
	if len(r.Rootfs) > 0 {
		c.rootfs = filepath.Join(r.Bundle, "rootfs")
		if err := os.MkdirAll(c.rootfs, 0o711); err != nil {
			return nil, fmt.Errorf("rootfs: %w", err)
		}
		if err := mountAll(r.Rootfs, c.rootfs); err != nil {
			return nil, fmt.Errorf("rootfs: %w", err)
		}
	}
	streams, err := p.openStreams(r.Options, "console.sock")
	if err != nil {
		return nil, err
	}
	release := s.reaper.hold()
	defer release()
	pid, err := c.runtime.create(ctx, c.id, r.Bundle, filepath.Join(r.Bundle, "init.pid"), streams)
	if err != nil {
		return nil, err
	}
	if err := p.adopt(pid); err != nil {
		return nil, err
	}
	streams.Given()
	if err := streams.Attach(); err != nil {
		return nil, err
	}
	if b, err := birthOf(pid); err != nil {
		s.log.Warn("the first process is not recorded", "task", c.id, "err", err)
	} else if err := writeRecord(r.Bundle, initRecord, b, false); err != nil {
		s.log.Warn("the first process is not recorded", "task", c.id, "err", err)
	}
	c.cgroup = cgroup.Of(pid)
	c.shared = sharesPids(pid)
	e := p.event(runner.Created)
	e.Bundle, e.Rootfs, e.IO = r.Bundle, r.Rootfs, r.IO
	s.queue.add(e)
	return p, nil
}

// undo removes what a failed create has made. The caller may have gone, so it
// has time of its own.
func (c *container) undo(p *process) {
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	log := c.shim.log.With("task", c.id)
	p.discard()
	if s := p.streams(); s != nil {
		s.Abort()
	}
	if c.runtime.knows(c.id) {
		if err := c.runtime.simple(ctx, c.bundle, "delete", "--force", c.id); err != nil {
			log.Warn("a container that was not made may have left something", "err", err)
		}
	}
	if c.rootfs != "" {
		if err := detachAll(c.rootfs, c.shim.wg.Go); err != nil {
			log.Warn("a container that was not made may have left something", "err", err)
		}
	}
}

// Delete implements runner.Tasks.
func (s *Shim) Delete(ctx context.Context, id string) (task.Exit, error) {
	var exit task.Exit
	err := s.inSlot(ctx, id, "", func(ctx context.Context, p *process) error {
		switch status := p.statusNow(); status {
		case task.Stopped:
		case task.Created:
			if err := p.end(); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%v is %s: cannot delete a running process: %w", p, status, errdefs.ErrFailedPrecondition)
		}
		exit = p.exitNow()
		return p.c.remove(ctx, p)
	})
	if errdefs.IsNotFound(err) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if kept, ok := s.kept[id]; ok {
			return kept, nil
		}
	}
	return exit, err
}

// remove frees a container whose first process has ended. If it fails it may
// be called again.
func (c *container) remove(ctx context.Context, p *process) error {
	s := c.shim
	for _, e := range c.list() {
		if err := c.dropExec(ctx, e); err != nil {
			return err
		}
	}
	p.streams().Close()
	if c.runtime.knows(c.id) {
		if err := c.runtime.simple(ctx, c.bundle, "delete", "--force", c.id); err != nil {
			return fmt.Errorf("task %s: %w", c.id, err)
		}
	}
	if c.rootfs != "" {
		if err := detachAll(c.rootfs, s.wg.Go); err != nil {
			return fmt.Errorf("task %s: %w", c.id, err)
		}
	}
	p.free()
	e := p.event(runner.Deleted)
	e.Exit = p.exitNow()
	s.queue.add(e)

	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, c.id)
	if len(s.kept) >= keptMax {
		clear(s.kept)
	}
	s.kept[c.id] = e.Exit
	s.idleLocked()
	close(p.gone)
	return nil
}

// dropExec removes an exec of a container that has ended.
func (c *container) dropExec(ctx context.Context, e *process) error {
	if err := e.take(ctx); err != nil {
		return err
	}
	defer e.release()
	if e.isGone() {
		return nil
	}
	if e.statusNow() == task.Running {
		if err := e.end(); err != nil {
			return err
		}
	}
	c.forgetExec(e)
	return nil
}

func (c *container) forgetExec(e *process) {
	e.free()
	os.RemoveAll(e.dir)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, e.exec)
	close(e.gone)
}

// State implements runner.Tasks.
func (s *Shim) State(_ context.Context, id, exec string) (runner.State, error) {
	p, err := s.find(id, exec)
	if err != nil {
		return runner.State{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return runner.State{
		Process: task.Process{
			ContainerID: id,
			ExecID:      exec,
			Pid:         p.pid,
			Status:      p.status,
			IO:          p.io,
			Exit:        p.exit,
		},
		Bundle: p.c.bundle,
	}, nil
}
