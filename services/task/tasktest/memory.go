package tasktest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

// MemoryRuntime is the one runtime that [Memory] has.
const MemoryRuntime = "io.containerd.runc.v2"

// Memory runs tasks without processes: a program stands for the executable that
// process.args[0] of the container's spec names.
type Memory struct {
	containers container.Stores
	programs   Programs

	mu    sync.Mutex
	shims map[key]*Shim // guarded by mu
}

type key struct{ namespace, id string }

var _ task.Services = (*Memory)(nil)

// NewMemory returns the tasks of containers.
func NewMemory(containers container.Stores, programs Programs) *Memory {
	return &Memory{containers: containers, programs: programs, shims: make(map[key]*Shim)}
}

// In implements [task.Services].
func (m *Memory) In(scope namespace.Scope) task.Service { return memoryService{m, scope} }

type memoryService struct {
	m     *Memory
	scope namespace.Scope
}

func (s memoryService) key(id string) key { return key{s.scope.Name, id} }

func (s memoryService) shim(id string) (*Shim, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	shim := s.m.shims[s.key(id)]
	if shim == nil {
		return nil, fmt.Errorf("task %s: %w", id, errdefs.ErrNotFound)
	}
	return shim, nil
}

func (s memoryService) Create(ctx context.Context, r task.CreateRequest) (uint32, error) {
	c, err := s.m.containers.In(s.scope).Get(ctx, r.ContainerID)
	if err != nil {
		return 0, err
	}
	if c.Runtime.Name != MemoryRuntime || r.RuntimePath != "" {
		return 0, fmt.Errorf("runtime %q binary not installed: %w", c.Runtime.Name, errdefs.ErrInvalidArgument)
	}
	if r.Checkpoint != nil {
		return 0, fmt.Errorf("restore: %w", errdefs.ErrNotImplemented)
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.m.shims[s.key(c.ID)] != nil {
		return 0, fmt.Errorf("task %s: %w", c.ID, errdefs.ErrAlreadyExists)
	}
	shim := NewShim(s.m.programs)
	pid, err := shim.create(c.Spec.Data, r.IO)
	if err != nil {
		return 0, err
	}
	s.m.shims[s.key(c.ID)] = shim
	return pid, nil
}

func (s memoryService) Delete(ctx context.Context, id string) (task.Exit, error) {
	shim, err := s.shim(id)
	if err != nil {
		return task.Exit{}, err
	}
	exit, err := shim.Delete(ctx, id)
	if err != nil {
		return task.Exit{}, err
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	delete(s.m.shims, s.key(id))
	return exit, nil
}

func (s memoryService) Get(ctx context.Context, id, exec string) (task.Process, error) {
	shim, err := s.shim(id)
	if err != nil {
		return task.Process{}, err
	}
	return shim.Get(ctx, id, exec)
}

// each calls fn for every task of the namespace, in byte order of the ids.
func (s memoryService) each(fn func(id string, shim *Shim) error) error {
	s.m.mu.Lock()
	var ids []string
	shims := make(map[string]*Shim)
	for k, shim := range s.m.shims {
		if k.namespace == s.scope.Name {
			ids = append(ids, k.id)
			shims[k.id] = shim
		}
	}
	s.m.mu.Unlock()
	slices.SortFunc(ids, strings.Compare)
	for _, id := range ids {
		if err := fn(id, shims[id]); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
	}
	return nil
}

func (s memoryService) List(ctx context.Context) ([]task.Process, error) {
	var all []task.Process
	err := s.each(func(id string, shim *Shim) error {
		p, err := shim.Get(ctx, id, "")
		if err == nil {
			all = append(all, p)
		}
		return err
	})
	return all, err
}

func (s memoryService) Exec(ctx context.Context, r task.ExecRequest) error {
	if err := ident.Check(r.ExecID); err != nil {
		return err
	}
	shim, err := s.shim(r.ContainerID)
	if err != nil {
		return err
	}
	return shim.Exec(ctx, r)
}

func (s memoryService) Start(ctx context.Context, id, exec string) (uint32, error) {
	shim, err := s.shim(id)
	if err != nil {
		return 0, err
	}
	return shim.Start(ctx, id, exec)
}

func (s memoryService) Wait(ctx context.Context, id, exec string) (task.Exit, error) {
	shim, err := s.shim(id)
	if err != nil {
		return task.Exit{}, err
	}
	return shim.Wait(ctx, id, exec)
}

func (s memoryService) Kill(ctx context.Context, id, exec string, signal uint32, all bool) error {
	shim, err := s.shim(id)
	if err != nil {
		return err
	}
	return shim.Kill(ctx, id, exec, signal, all)
}

func (s memoryService) DeleteProcess(ctx context.Context, id, exec string) (task.Exit, error) {
	shim, err := s.shim(id)
	if err != nil {
		return task.Exit{}, err
	}
	return shim.DeleteProcess(ctx, id, exec)
}

func (s memoryService) ResizePty(ctx context.Context, id, exec string, width, height uint32) error {
	shim, err := s.shim(id)
	if err != nil {
		return err
	}
	return shim.ResizePty(ctx, id, exec, width, height)
}

func (s memoryService) CloseIO(ctx context.Context, id, exec string) error {
	shim, err := s.shim(id)
	if err != nil {
		return err
	}
	return shim.CloseIO(ctx, id, exec)
}

func (s memoryService) Pause(ctx context.Context, id string) error {
	shim, err := s.shim(id)
	if err != nil {
		return err
	}
	return shim.Pause(ctx, id)
}

func (s memoryService) Resume(ctx context.Context, id string) error {
	shim, err := s.shim(id)
	if err != nil {
		return err
	}
	return shim.Resume(ctx, id)
}

func (s memoryService) Pids(ctx context.Context, id string) ([]task.ProcessInfo, error) {
	shim, err := s.shim(id)
	if err != nil {
		return nil, err
	}
	return shim.Pids(ctx, id)
}

func (s memoryService) Update(ctx context.Context, id string, resources typed.Value, annotations map[string]string) error {
	shim, err := s.shim(id)
	if err != nil {
		return err
	}
	return shim.Update(ctx, id, resources, annotations)
}

func (s memoryService) Checkpoint(_ context.Context, id string, _ *typed.Value) ([]ocispec.Descriptor, error) {
	if _, err := s.shim(id); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("checkpoint: %w", errdefs.ErrNotImplemented)
}

func (s memoryService) Metrics(ctx context.Context, filters ...string) ([]task.Metric, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	var all []task.Metric
	err = s.each(func(id string, shim *Shim) error {
		if !f.Match(task.MetricField(s.scope.Name, id)) {
			return nil
		}
		data, err := shim.Stats(ctx, id)
		if err == nil {
			all = append(all, task.Metric{ID: id, Time: time.Now().UTC(), Data: data})
		}
		return err
	})
	return all, err
}
