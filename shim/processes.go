package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/runner"
	"github.com/gantryd/gantry/services/task"
)

// Exec implements task.Processes.
func (s *Shim) Exec(_ context.Context, r task.ExecRequest) error {
	if err := ident.Check(r.ExecID); err != nil {
		return fmt.Errorf("exec id: %w", err)
	}
	init, err := s.find(r.ContainerID, "")
	if err != nil {
		return err
	}
	spec, err := execSpec(r.Spec.Data, r.IO.Terminal)
	if err != nil {
		return fmt.Errorf("exec %s: process: %v: %w", r.ExecID, err, errdefs.ErrInvalidArgument)
	}
	if status := init.statusNow(); status != task.Running {
		return fmt.Errorf("exec %s: task %s is %s: %w", r.ExecID, r.ContainerID, status, errdefs.ErrFailedPrecondition)
	}
	if !s.queue.hasRoom() {
		return fmt.Errorf("exec %s: too many events that nobody takes: %w", r.ExecID, errdefs.ErrResourceExhausted)
	}
	c := init.c
	p := newProcess(c, r.ExecID, filepath.Join(c.bundle, "exec", r.ExecID), r.IO)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[r.ExecID] != nil {
		return fmt.Errorf("exec %s in task %s: %w", r.ExecID, c.id, errdefs.ErrAlreadyExists)
	}
	if len(c.execs) >= execsMax {
		return fmt.Errorf("exec %s: %d execs of task %s are not deleted: %w", r.ExecID, len(c.execs), c.id, errdefs.ErrResourceExhausted)
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return fmt.Errorf("exec %s: %w", r.ExecID, err)
	}
	if err := os.WriteFile(filepath.Join(p.dir, "process.json"), spec, 0o600); err != nil {
		return errors.Join(fmt.Errorf("exec %s: %w", r.ExecID, err), os.RemoveAll(p.dir))
	}
	c.execs[r.ExecID] = p
	s.queue.add(p.event(runner.ExecAdded))
	return nil
}

// Start implements task.Processes.
func (s *Shim) Start(ctx context.Context, id, exec string) (uint32, error) {
	var pid uint32
	err := s.inSlot(ctx, id, exec, func(ctx context.Context, p *process) error {
		if err := p.begin(); err != nil {
			return err
		}
		start := p.startInit
		if exec != "" {
			start = p.startExec
		}
		if err := start(ctx); err != nil {
			return fmt.Errorf("%v: %w", p, err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		pid = p.pid
		return nil
	})
	return pid, err
}

func (p *process) startInit(ctx context.Context) error {
	if err := p.c.runtime.start(ctx, p.c.id, p.c.bundle, p.c.hooks, p.dead); err != nil {
		p.begun(task.Created)
		return errors.Join(err, p.end())
	}
	p.c.shim.queue.add(p.event(runner.Started))
	p.begun(task.Running)
	return nil
}

func (p *process) startExec(ctx context.Context) error {
	s := p.c.shim
	if err := p.runExec(ctx); err != nil {
		p.discard()
		if io := p.streams(); io != nil {
			io.Abort()
		}
		p.begun(task.Created)
		p.finish(task.Exit{Status: unknownStatus, At: time.Now().UTC()})
		return err
	}
	s.queue.add(p.event(runner.ExecStarted))
	s.mu.Lock()
	s.live++
	s.wg.Go(p.watch)
	s.mu.Unlock()
	p.begun(task.Running)
	return nil
}

// runExec makes the process. It is adopted, if it was made, and not watched.
func (p *process) runExec(ctx context.Context) error {
	c := p.c
	streams, err := p.openStreams(c.runtime.options, "console-"+p.exec+".sock")
	if err != nil {
		return err
	}
	release := c.shim.reaper.hold()
	defer release()
	pid, err := c.runtime.exec(ctx, c.id, c.bundle, p.dir, streams)
	if err != nil {
		return err
	}
	if err := p.adopt(pid); err != nil {
		return err
	}
	streams.Given()
	return streams.Attach()
}

// Wait implements task.Processes.
func (s *Shim) Wait(ctx context.Context, id, exec string) (task.Exit, error) {
	p, err := s.find(id, exec)
	if err != nil {
		return task.Exit{}, err
	}
	select {
	case <-p.over:
		return p.exitNow(), nil
	case <-p.gone:
		err = p.notFound()
	case <-s.done:
		err = fmt.Errorf("%v: the shim is ending: %w", p, errdefs.ErrUnavailable)
	case <-ctx.Done():
		err = ctx.Err()
	}
	select {
	case <-p.over: // it comes before the other ends
		return p.exitNow(), nil
	default:
		return task.Exit{}, err
	}
}

// Kill implements task.Processes.
func (s *Shim) Kill(ctx context.Context, id, exec string, sig uint32, all bool) error {
	p, err := s.find(id, exec)
	if err != nil {
		return err
	}
	if sig > signalMax {
		return fmt.Errorf("signal %d: %w", sig, errdefs.ErrInvalidArgument)
	}
	c := p.c
	switch {
	case p.statusNow() == task.Paused && sig == uint32(unix.SIGKILL):
		// Frozen processes do not die; the OCI runtime knows how to thaw them.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
		defer cancel()
		return c.runtime.simple(ctx, c.bundle, "kill", id, "KILL")
	case all && exec == "" && p.statusNow() != task.Stopped && c.cgroup.Known():
		return c.cgroup.Signal(sig)
	}
	return p.kill(sig)
}

// DeleteProcess implements task.Processes.
func (s *Shim) DeleteProcess(ctx context.Context, id, exec string) (task.Exit, error) {
	if exec == "" {
		return task.Exit{}, fmt.Errorf("task %s: want the id of an exec: %w", id, errdefs.ErrInvalidArgument)
	}
	var exit task.Exit
	err := s.inSlot(ctx, id, exec, func(_ context.Context, p *process) error {
		if p.statusNow() == task.Running {
			return fmt.Errorf("%v is running: cannot delete a running process: %w", p, errdefs.ErrFailedPrecondition)
		}
		exit = p.exitNow()
		p.c.forgetExec(p)
		return nil
	})
	return exit, err
}

// ResizePty implements task.Processes.
func (s *Shim) ResizePty(ctx context.Context, id, exec string, width, height uint32) error {
	p, err := s.find(id, exec)
	if err != nil {
		return err
	}
	if !p.io.Terminal {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.width, p.height = width, height
	if p.stdio == nil {
		return nil
	}
	return p.stdio.Resize(width, height)
}

// CloseIO implements task.Processes.
func (s *Shim) CloseIO(_ context.Context, id, exec string) error {
	p, err := s.find(id, exec)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stdinEnded = true
	if p.stdio != nil {
		p.stdio.CloseStdin()
	}
	return nil
}
