package taskd

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

	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

// How long a shim has for what. Within seekTime after a restart, or after a
// connection broke, calls wait for the shim to be found again.
const (
	stateTime    = 2 * time.Second
	seekTime     = 5 * time.Second
	startTime    = 30 * time.Second
	createTime   = 2 * time.Minute
	callTime     = time.Minute
	deleteTime   = 2 * time.Minute
	shutdownTime = 3 * time.Second
	cleanTime    = 30 * time.Second
)

const (
	stateMax = 8  // questions to one shim at once
	askMax   = 64 // shims that are asked at once by a call that asks all
)

type services struct{ s *Store }

var _ task.Services = services{}

// In implements task.Services.
func (t services) In(scope namespace.Scope) task.Service { return service{t.s, scope.Name} }

type service struct {
	*Store
	namespace string
}

var _ task.Service = service{}

// Create implements task.Tasks; see create.go.
func (s service) Create(ctx context.Context, r task.CreateRequest) (uint32, error) {
	return s.createTask(ctx, s.namespace, r)
}

// Delete implements task.Tasks; see delete.go.
func (s service) Delete(ctx context.Context, id string) (task.Exit, error) {
	return s.deleteTask(ctx, s.namespace, id)
}

// Get implements task.Tasks.
func (s service) Get(ctx context.Context, id, exec string) (task.Process, error) {
	l, err := s.find(ctx, s.namespace, id)
	if err != nil {
		return task.Process{}, err
	}
	return s.get(ctx, l, exec)
}

func (s service) get(ctx context.Context, l *live, exec string) (task.Process, error) {
	short, cancel := context.WithTimeout(ctx, stateTime)
	defer cancel()
	for {
		v, err := l.known(short)
		p := task.Process{ContainerID: l.id, ExecID: exec, Status: task.Unknown}
		if exec == "" {
			p.Pid, p.IO = v.rec.Pid, v.rec.IO
		}
		switch {
		case ctx.Err() != nil:
			return task.Process{}, ctx.Err()
		case err != nil || v.phase == mute:
			return p, nil
		case v.phase == gone || v.phase == beginning || v.phase == dead && exec != "":
			return task.Process{}, fmt.Errorf("process %q of task %s not found: %w", exec, l.id, errdefs.ErrNotFound)
		case v.phase == dead:
			p.Status, p.Exit = task.Stopped, v.exit
			return p, nil
		}
		got, err := l.state(short, v.shim, exec)
		switch {
		case err == nil || errors.Is(err, errdefs.ErrNotFound):
			return got, err
		case ctx.Err() != nil:
			return task.Process{}, ctx.Err()
		case short.Err() == nil && isDone(v.shim):
			continue
		case short.Err() == nil:
			s.log.Warn("a shim cannot say what a process does", "namespace", l.namespace, "task", l.id, "exec", exec, "err", err)
		}
		return p, nil
	}
}

// state asks a shim what a process does. The answer is never shared: it may not
// be older than the question.
func (l *live) state(ctx context.Context, shim task.Shim, exec string) (task.Process, error) {
	select {
	case l.asking <- struct{}{}:
		defer func() { <-l.asking }()
		if ctx.Err() != nil {
			return task.Process{}, ctx.Err() // there is nobody to answer to
		}
		return shim.Get(ctx, l.id, exec)
	case <-ctx.Done():
		return task.Process{}, ctx.Err()
	}
}

func isDone(shim task.Shim) bool {
	select {
	case <-shim.Done():
		return true
	default:
		return false
	}
}

// each asks every task of the namespace at once and returns the answers in byte
// order of the ids. Tasks that fail are left out.
func each[T any](s service, ask func(l *live) (T, error)) []T {
	s.mu.Lock()
	var all []*live
	for k, l := range s.tasks {
		if k.namespace == s.namespace && l.visible() {
			all = append(all, l)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b *live) int { return strings.Compare(a.id, b.id) })
	answers := make([]*T, len(all))
	places := make(chan struct{}, askMax)
	var wg sync.WaitGroup
	for i, l := range all {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			if a, err := ask(l); err == nil {
				answers[i] = &a
			}
		})
	}
	wg.Wait()
	var out []T
	for _, a := range answers {
		if a != nil {
			out = append(out, *a)
		}
	}
	return out
}

// List implements task.Tasks.
func (s service) List(ctx context.Context) ([]task.Process, error) {
	all := each(s, func(l *live) (task.Process, error) { return s.get(ctx, l, "") })
	return all, ctx.Err()
}

// call makes one call to a task's shim.
func call[T any](ctx context.Context, s service, id string, do func(context.Context, task.Shim) (T, error)) (T, error) {
	var none T
	l, err := s.find(ctx, s.namespace, id)
	if err != nil {
		return none, err
	}
	shim, err := l.connected(ctx)
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	v, err := do(ctx, shim)
	if errors.Is(err, errdefs.ErrUnavailable) && isDone(shim) {
		// What became of the shim is the better answer.
		if _, now := l.connected(ctx); now != nil {
			return none, now
		}
	}
	return v, err
}

func (s service) tell(ctx context.Context, id string, do func(context.Context, task.Shim) error) error {
	_, err := call(ctx, s, id, func(ctx context.Context, shim task.Shim) (struct{}, error) {
		return struct{}{}, do(ctx, shim)
	})
	return err
}

// Exec implements task.Processes.
func (s service) Exec(ctx context.Context, r task.ExecRequest) error {
	l, err := s.find(ctx, s.namespace, r.ContainerID)
	if err != nil {
		return err
	}
	if err := ident.Check(r.ExecID); err != nil {
		return fmt.Errorf("exec id: %w", err)
	}
	if l.look().phase == dead {
		return fmt.Errorf("task %s has ended: %w", l.id, errdefs.ErrFailedPrecondition)
	}
	return s.tell(ctx, r.ContainerID, func(ctx context.Context, shim task.Shim) error {
		return because(ctx, shim, l.id, "", shim.Exec(ctx, r), task.Stopped, task.Created)
	})
}

// because gives err its kind if the shim's words have none, as those of
// containerd's shim: a process that is missing or has one of the statuses was
// in the way.
func because(ctx context.Context, shim task.Shim, id, exec string, err error, wrong ...task.Status) error {
	if err == nil || !errors.Is(err, errdefs.ErrUnknown) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stateTime)
	defer cancel()
	p, getErr := shim.Get(ctx, id, exec)
	switch {
	case errors.Is(getErr, errdefs.ErrNotFound):
		return fmt.Errorf("%v: %w", err, errdefs.ErrNotFound)
	case getErr == nil && slices.Contains(wrong, p.Status):
		return fmt.Errorf("%v: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}

// Start implements task.Processes. The first process of a container starts when
// its gates let it; see gates.go.
func (s service) Start(ctx context.Context, id, exec string) (uint32, error) {
	if exec == "" {
		l, err := s.find(ctx, s.namespace, id)
		if err != nil {
			return 0, err
		}
		if err := s.pass(ctx, l); err != nil {
			return 0, err
		}
	}
	return call(ctx, s, id, func(ctx context.Context, shim task.Shim) (uint32, error) {
		pid, err := shim.Start(ctx, id, exec)
		if err != nil || pid != 0 {
			return pid, err
		}
		p, err := shim.Get(ctx, id, exec)
		return p.Pid, err
	})
}

// Wait implements task.Processes. However many wait for a process, its shim is
// asked once: a shim does not notice that a caller has left.
func (s service) Wait(ctx context.Context, id, exec string) (task.Exit, error) {
	l, err := s.find(ctx, s.namespace, id)
	if err != nil {
		return task.Exit{}, err
	}
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.waiting, cancel)()
	exit, err := s.wait(both, l, exec)
	if err != nil && ctx.Err() == nil && s.waiting.Err() != nil {
		return task.Exit{}, fmt.Errorf("taskd is stopping: %w", errdefs.ErrUnavailable)
	}
	return exit, err
}

func (s service) wait(ctx context.Context, l *live, exec string) (task.Exit, error) {
	for {
		v := l.look()
		switch v.phase {
		case dead:
			return v.exit, nil
		case gone, beginning:
			return task.Exit{}, fmt.Errorf("task %s not found: %w", l.id, errdefs.ErrNotFound)
		case reached:
			exit, err := l.waits.join(ctx, waitKey{v.shim, exec}, s.wg.Go, func() (task.Exit, error) {
				return v.shim.Wait(s.ctx, l.id, exec)
			})
			if err == nil || ctx.Err() != nil || !errors.Is(err, errdefs.ErrUnavailable) {
				return exit, err
			}
			if !isDone(v.shim) {
				return exit, err
			}
		default:
			select {
			case <-v.changed:
			case <-ctx.Done():
				return task.Exit{}, ctx.Err()
			}
		}
	}
}

// Kill implements task.Processes.
func (s service) Kill(ctx context.Context, id, exec string, signal uint32, all bool) error {
	return s.tell(ctx, id, func(ctx context.Context, shim task.Shim) error { return shim.Kill(ctx, id, exec, signal, all) })
}

// DeleteProcess implements task.Processes.
func (s service) DeleteProcess(ctx context.Context, id, exec string) (task.Exit, error) {
	if exec == "" { // to a shim that would be the task itself
		if _, err := s.find(ctx, s.namespace, id); err != nil {
			return task.Exit{}, err
		}
		return task.Exit{}, fmt.Errorf("exec id must not be empty: %w", errdefs.ErrInvalidArgument)
	}
	return call(ctx, s, id, func(ctx context.Context, shim task.Shim) (task.Exit, error) {
		e, err := shim.DeleteProcess(ctx, id, exec)
		return e, because(ctx, shim, id, exec, err, task.Running, task.Paused, task.Pausing)
	})
}

// ResizePty implements task.Processes.
func (s service) ResizePty(ctx context.Context, id, exec string, width, height uint32) error {
	return s.tell(ctx, id, func(ctx context.Context, shim task.Shim) error { return shim.ResizePty(ctx, id, exec, width, height) })
}

// CloseIO implements task.Processes.
func (s service) CloseIO(ctx context.Context, id, exec string) error {
	return s.tell(ctx, id, func(ctx context.Context, shim task.Shim) error { return shim.CloseIO(ctx, id, exec) })
}

// Pause implements task.Controls.
func (s service) Pause(ctx context.Context, id string) error {
	return s.tell(ctx, id, func(ctx context.Context, shim task.Shim) error { return shim.Pause(ctx, id) })
}

// Resume implements task.Controls.
func (s service) Resume(ctx context.Context, id string) error {
	return s.tell(ctx, id, func(ctx context.Context, shim task.Shim) error { return shim.Resume(ctx, id) })
}

// Pids implements task.Controls.
func (s service) Pids(ctx context.Context, id string) ([]task.ProcessInfo, error) {
	return call(ctx, s, id, func(ctx context.Context, shim task.Shim) ([]task.ProcessInfo, error) { return shim.Pids(ctx, id) })
}

// Update implements task.Controls.
func (s service) Update(ctx context.Context, id string, resources typed.Value, annotations map[string]string) error {
	return s.tell(ctx, id, func(ctx context.Context, shim task.Shim) error { return shim.Update(ctx, id, resources, annotations) })
}

// Checkpoint implements task.Controls.
func (s service) Checkpoint(ctx context.Context, id string, _ *typed.Value) ([]ocispec.Descriptor, error) {
	if _, err := s.find(ctx, s.namespace, id); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("checkpoint: %w", errdefs.ErrNotImplemented)
}

// Metrics implements task.Controls. A shim is asked once, however many want to
// know.
func (s service) Metrics(ctx context.Context, filters ...string) ([]task.Metric, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	short, cancel := context.WithTimeout(ctx, stateTime)
	defer cancel()
	all := each(s, func(l *live) (task.Metric, error) {
		if !f.Match(task.MetricField(s.namespace, l.id)) {
			return task.Metric{}, errdefs.ErrNotFound
		}
		shim, err := l.connected(short)
		if err != nil {
			return task.Metric{}, err
		}
		data, err := l.stats.join(short, struct{}{}, s.wg.Go, func() (*typed.Value, error) {
			own, cancel := context.WithTimeout(s.ctx, stateTime)
			defer cancel()
			return shim.Stats(own, l.id)
		})
		return task.Metric{ID: l.id, Time: time.Now().UTC(), Data: data}, err
	})
	return all, ctx.Err()
}
