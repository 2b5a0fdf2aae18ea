package shim

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/runner"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

// Pause implements runner.Controls.
func (s *Shim) Pause(ctx context.Context, id string) error {
	return s.change(ctx, id, "pause", task.Running, task.Paused, runner.Paused)
}

// Resume implements runner.Controls.
func (s *Shim) Resume(ctx context.Context, id string) error {
	return s.change(ctx, id, "resume", task.Paused, task.Running, runner.Resumed)
}

func (s *Shim) change(ctx context.Context, id, verb string, from, to task.Status, topic runner.Topic) error {
	if !s.queue.hasRoom() {
		return fmt.Errorf("task %s: too many events that nobody takes: %w", id, errdefs.ErrResourceExhausted)
	}
	return s.inSlot(ctx, id, "", func(ctx context.Context, p *process) error {
		if status := p.statusNow(); status != from {
			return fmt.Errorf("%v is %s: cannot %s it: %w", p, status, verb, errdefs.ErrFailedPrecondition)
		}
		if err := p.c.runtime.simple(ctx, p.c.bundle, verb, id); err != nil {
			return fmt.Errorf("%v: %w", p, err)
		}
		p.mu.Lock()
		if p.status == from {
			p.status = to
		}
		p.mu.Unlock()
		s.queue.add(runner.Event{Topic: topic, ContainerID: id})
		return nil
	})
}

// Pids implements runner.Controls.
func (s *Shim) Pids(_ context.Context, id string) ([]runner.Pid, error) {
	init, err := s.find(id, "")
	if err != nil {
		return nil, err
	}
	execs := map[uint32]string{}
	all := append(init.c.list(), init)
	for _, p := range all {
		p.mu.Lock()
		if p.fd != nil && p.status != task.Stopped {
			execs[p.pid] = p.exec
		}
		p.mu.Unlock()
	}
	var pids []runner.Pid
	inCgroup, err := init.c.cgroup.Pids()
	if err != nil {
		for pid, exec := range execs {
			pids = append(pids, runner.Pid{Pid: pid, Exec: exec})
		}
		return pids, nil
	}
	for _, pid := range inCgroup {
		pids = append(pids, runner.Pid{Pid: pid, Exec: execs[pid]})
	}
	return pids, nil
}

// Update implements runner.Controls.
func (s *Shim) Update(ctx context.Context, id string, resources typed.Value) error {
	if !json.Valid(resources.Data) {
		return fmt.Errorf("task %s: resources are not JSON: %w", id, errdefs.ErrInvalidArgument)
	}
	return s.inSlot(ctx, id, "", func(ctx context.Context, p *process) error {
		file := filepath.Join(p.c.bundle, "resources.json")
		if err := os.WriteFile(file, resources.Data, 0o600); err != nil {
			return fmt.Errorf("%v: %w", p, err)
		}
		defer os.Remove(file)
		if err := p.c.runtime.simple(ctx, p.c.bundle, "update", "--resources", file, id); err != nil {
			return fmt.Errorf("%v: %w", p, err)
		}
		return nil
	})
}

// Checkpoint implements runner.Controls.
func (s *Shim) Checkpoint(context.Context, string, string) error {
	return fmt.Errorf("checkpoint: %w", errdefs.ErrNotImplemented)
}

// Stats implements runner.Controls.
func (s *Shim) Stats(_ context.Context, id string) (runner.Stats, error) {
	p, err := s.find(id, "")
	if err != nil {
		return runner.Stats{}, err
	}
	st, err := p.c.cgroup.Stats()
	if err != nil {
		return runner.Stats{}, fmt.Errorf("task %s: %v: %w", id, err, errdefs.ErrNotFound)
	}
	return st, nil
}
