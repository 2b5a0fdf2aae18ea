package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/client/clienttest"
	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventtest"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/task"
)

// A shaky daemon does what it is asked and dies before it can say so, once a
// call. It may also be away when it is asked.
type shaky struct {
	mu   sync.Mutex
	seen map[string]int // guarded by mu
}

// away says whether the daemon is not there for this call. Every call is made
// three times: nobody there, done and not said, and well.
func (s *shaky) away(call string) (before, after error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = make(map[string]int)
	}
	s.seen[call]++
	err := fmt.Errorf("%s: the daemon is gone: %w", call, errdefs.ErrUnavailable)
	switch s.seen[call] {
	case 1:
		return err, nil
	case 2:
		return nil, err
	}
	return nil, nil
}

func call[T any](s *shaky, name string, f func() (T, error)) (T, error) {
	before, after := s.away(name)
	if before != nil {
		var zero T
		return zero, before
	}
	v, err := f()
	if after != nil {
		return v, after
	}
	return v, err
}

type shakyContainers struct {
	container.Stores
	*shaky
}

func (s shakyContainers) In(scope namespace.Scope) container.Store {
	return shakyContainersIn{s.Stores.In(scope), s.shaky}
}

type shakyContainersIn struct {
	container.Store
	*shaky
}

func (s shakyContainersIn) Create(ctx context.Context, c container.Container) (container.Container, error) {
	return call(s.shaky, "containers create", func() (container.Container, error) { return s.Store.Create(ctx, c) })
}

func (s shakyContainersIn) Delete(ctx context.Context, id string) error {
	_, err := call(s.shaky, "containers delete", func() (int, error) { return 0, s.Store.Delete(ctx, id) })
	return err
}

type shakySnapshots struct {
	snapshot.Stores
	*shaky
}

func (s shakySnapshots) In(scope namespace.Scope, name string) (snapshot.Store, error) {
	store, err := s.Stores.In(scope, name)
	return shakySnapshotsIn{store, s.shaky}, err
}

type shakySnapshotsIn struct {
	snapshot.Store
	*shaky
}

func (s shakySnapshotsIn) Remove(ctx context.Context, key string) error {
	_, err := call(s.shaky, "snapshots remove", func() (int, error) { return 0, s.Store.Remove(ctx, key) })
	return err
}

func (s shakySnapshotsIn) Commit(ctx context.Context, name, key string, o snapshot.Options) error {
	_, err := call(s.shaky, "snapshots commit", func() (int, error) { return 0, s.Store.Commit(ctx, name, key, o) })
	return err
}

type shakyTasks struct {
	task.Services
	*shaky
}

func (s shakyTasks) In(scope namespace.Scope) task.Service {
	return shakyTasksIn{s.Services.In(scope), s.shaky}
}

type shakyTasksIn struct {
	task.Service
	*shaky
}

func (s shakyTasksIn) Create(ctx context.Context, r task.CreateRequest) (uint32, error) {
	return call(s.shaky, "tasks create", func() (uint32, error) { return s.Service.Create(ctx, r) })
}

func (s shakyTasksIn) Start(ctx context.Context, id, exec string) (uint32, error) {
	return call(s.shaky, "tasks start "+exec, func() (uint32, error) { return s.Service.Start(ctx, id, exec) })
}

func (s shakyTasksIn) Exec(ctx context.Context, r task.ExecRequest) error {
	_, err := call(s.shaky, "tasks exec", func() (int, error) { return 0, s.Service.Exec(ctx, r) })
	return err
}

func (s shakyTasksIn) Wait(ctx context.Context, id, exec string) (task.Exit, error) {
	return call(s.shaky, "tasks wait "+exec, func() (task.Exit, error) { return s.Service.Wait(ctx, id, exec) })
}

func (s shakyTasksIn) Delete(ctx context.Context, id string) (task.Exit, error) {
	return call(s.shaky, "tasks delete", func() (task.Exit, error) { return s.Service.Delete(ctx, id) })
}

// TestRunThroughRestarts runs a container while every daemon restarts at the
// worst moments: it is a short wait and not an error, and nothing happens twice.
func TestRunThroughRestarts(t *testing.T) {
	c := demoNode(t, nil)
	var s shaky
	c.Containers = shakyContainers{c.Containers, &s}
	c.Snapshots = shakySnapshots{c.Snapshots, &s}
	c.Tasks = shakyTasks{c.Tasks, &s}
	k := create(t, c, "cat")
	in, feed := io.Pipe()
	var out bytes.Buffer
	p := start(t, k, client.Streams{In: in, Out: &out})
	e, err := k.Exec(t.Context(), client.Program{Args: []string{"exit", "5"}}, client.Streams{})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, e, 5)
	if err := e.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	feed.Close()
	waitFor(t, p, 0)
	if err := p.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if err := k.Delete(t.Context(), false); err != nil {
		t.Error(err)
	}
	var kept []string
	for name := range everything(t, c) {
		if strings.HasPrefix(name, "container ") || strings.HasPrefix(name, "snapshot ") && !strings.HasPrefix(name, "snapshot sha256:") {
			kept = append(kept, name)
		}
	}
	if len(kept) > 0 {
		t.Errorf("it left %v", slices.Sorted(slices.Values(kept)))
	}
}

// A restarting bus ends every subscription after some events, as if it
// restarted, and is away once in between.
type restartingBus struct {
	event.Bus
	after  int // events until it ends
	forget bool

	mu    sync.Mutex
	calls int // guarded by mu
}

func (b *restartingBus) Subscribe(ctx context.Context, o event.SubscribeOptions) (iter.Seq2[event.Event, error], error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.calls++; b.calls%2 == 0 {
		return nil, fmt.Errorf("bus: %w", errdefs.ErrUnavailable)
	}
	if b.forget && o.After != nil {
		return nil, fmt.Errorf("cursor: %w", errdefs.ErrOutOfRange)
	}
	events, err := b.Bus.Subscribe(ctx, o)
	return func(yield func(event.Event, error) bool) {
		n := 0
		for e, err := range events {
			if n++; n > b.after {
				yield(event.Event{}, fmt.Errorf("bus: %w", errdefs.ErrUnavailable))
				return
			}
			if !yield(e, err) {
				return
			}
		}
	}, err
}

func TestFollowGoesOnWhereItWas(t *testing.T) {
	for _, forget := range []bool{false, true} {
		c := clienttest.New(t, nil)
		bus := &restartingBus{Bus: c.Events, after: 3, forget: forget}
		c.Events = bus
		ctx, cancel := context.WithCancel(t.Context())
		events, err := c.Follow(ctx, event.SubscribeOptions{})
		if err != nil {
			t.Fatal(err)
		}
		const all = 10
		for i := range all {
			if err := bus.Publish(ctx, event.New("default", time.Now(), event.ImageCreate{Name: fmt.Sprint(i)})); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		for e, err := range events {
			if errors.Is(err, errdefs.ErrOutOfRange) {
				got = append(got, "gap")
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if got = append(got, e.Subject); len(got) == all {
				break
			}
		}
		cancel()
		want := []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}
		if forget {
			want = []string{"0", "1", "2", "gap"}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("forget %t (-want +got):\n%s", forget, diff)
		}
	}
}

func TestFollowGoesOnBehindAGap(t *testing.T) {
	c := clienttest.New(t, nil)
	bus := eventtest.NewMemory()
	c.Events = bus
	events, err := c.Follow(t.Context(), event.SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		if i == 3 {
			bus.Forget()
		}
		if err := bus.Publish(t.Context(), event.New("default", time.Now(), event.ImageCreate{Name: fmt.Sprint(i)})); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for e, err := range events {
		var gap *event.Gap
		switch {
		case errors.As(err, &gap):
			got = append(got, fmt.Sprint("gap ", gap.From.Sequence, " to ", gap.To.Sequence))
		case err != nil:
			t.Fatal(err)
		default:
			got = append(got, e.Subject)
		}
		if len(got) == 4 {
			break
		}
	}
	if diff := cmp.Diff([]string{"gap 0 to 3", "3", "4", "5"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
