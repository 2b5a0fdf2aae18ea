package gctest

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/lease"
)

// A Memory owns objects of one type, in memory. It is a [Driver] of itself.
type Memory struct {
	of  string
	now func() gc.Instant

	// mu guards the fields below it; it is held for as long as it takes to look
	// or to change, and inside the gate.
	mu      sync.Mutex
	gate    *gc.Gate
	hold    gc.Instant                    // the last deadline, which outlives a restart
	objects map[gc.Node]map[string]string // their labels
	leases  map[gc.Node]map[lease.Ref]bool
}

var (
	_ gc.Owner = (*Memory)(nil)
	_ Driver   = (*Memory)(nil)
)

// NewMemory owns what is of the type. The clock is [gc.Now], but for tests.
func NewMemory(of string, now func() gc.Instant) *Memory {
	return &Memory{of: of, now: now, gate: gc.NewGate(now), objects: map[gc.Node]map[string]string{}, leases: map[gc.Node]map[lease.Ref]bool{}}
}

// Restart forgets what a process that is started again does.
func (m *Memory) Restart() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gate = gc.NewGate(m.now)
	m.gate.Hold(m.hold)
}

func (m *Memory) current() *gc.Gate {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.gate
}

// change lets a writer in.
func (m *Memory) change(ctx context.Context, n gc.Node, fn func() error) error {
	g := m.current()
	if err := g.Enter(ctx); err != nil {
		return err
	}
	defer g.Leave()
	m.mu.Lock()
	defer m.mu.Unlock()
	err := fn()
	if err == nil {
		g.Note(n)
	}
	return err
}

// Make implements [Driver].
func (m *Memory) Make(ctx context.Context, ns string, i int, labels map[string]string) (gc.Node, error) {
	n := m.Node(ns, i)
	return n, m.change(ctx, n, func() error {
		if _, ok := m.objects[n]; !ok {
			m.objects[n] = maps.Clone(labels)
		}
		return nil
	})
}

// Node implements [Driver].
func (m *Memory) Node(ns string, i int) gc.Node {
	return gc.Node{Namespace: ns, Resource: lease.Resource{Type: m.of, ID: fmt.Sprintf("object %d", i)}}
}

// Touch implements [Driver].
func (m *Memory) Touch(ctx context.Context, n gc.Node) error {
	return m.change(ctx, n, func() error { return m.find(n) })
}

// Label implements [Driver].
func (m *Memory) Label(ctx context.Context, n gc.Node, labels map[string]string) error {
	return m.change(ctx, n, func() error {
		if err := m.find(n); err != nil {
			return err
		}
		m.objects[n] = maps.Clone(labels)
		return nil
	})
}

// Join implements [Driver].
func (m *Memory) Join(ctx context.Context, n gc.Node, l lease.Ref) error {
	return m.change(ctx, n, func() error {
		if m.leases[n] == nil {
			m.leases[n] = map[lease.Ref]bool{}
		}
		m.leases[n][l] = true
		return nil
	})
}

// Remove implements [Driver].
func (m *Memory) Remove(_ context.Context, n gc.Node) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.find(n)
	delete(m.objects, n)
	return err
}

// find is [errdefs.ErrNotFound] if there is no such object. m.mu is held.
func (m *Memory) find(n gc.Node) error {
	if _, ok := m.objects[n]; !ok {
		return fmt.Errorf("%v: %w", n, errdefs.ErrNotFound)
	}
	return nil
}

// Has implements [Driver].
func (m *Memory) Has(_ context.Context, n gc.Node) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.find(n) == nil && !m.gate.Hidden(n), nil
}

// Begin implements [gc.Owner].
func (m *Memory) Begin(ctx context.Context, epoch gc.Epoch) error {
	return m.current().Begin(ctx, epoch)
}

// Mark implements [gc.Owner].
func (m *Memory) Mark(_ context.Context, epoch gc.Epoch) iter.Seq2[gc.Object, error] {
	return func(yield func(gc.Object, error) bool) {
		g := m.current()
		m.mu.Lock()
		all := slices.SortedFunc(maps.Keys(m.objects), gc.Node.Compare)
		m.mu.Unlock()
		if err := g.Check(epoch); err != nil {
			yield(gc.Object{}, err)
			return
		}
		m.send(g, epoch, all, yield)
	}
}

// send yields those of all that are there.
func (m *Memory) send(g *gc.Gate, epoch gc.Epoch, all []gc.Node, yield func(gc.Object, error) bool) {
	for _, n := range all {
		if err := g.Check(epoch); err != nil {
			yield(gc.Object{}, err)
			return
		}
		if o, ok := m.read(n); ok && !yield(o, nil) {
			return
		}
	}
}

func (m *Memory) read(n gc.Node) (gc.Object, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	labels, ok := m.objects[n]
	o := gc.Object{Node: n, Size: int64(len(n.ID))}
	o.Read(labels)
	o.Leases = slices.SortedFunc(maps.Keys(m.leases[n]), lease.Ref.Compare)
	return o, ok
}

// Freeze implements [gc.Owner].
func (m *Memory) Freeze(ctx context.Context, epoch gc.Epoch, deadline gc.Instant) iter.Seq2[gc.Object, error] {
	return func(yield func(gc.Object, error) bool) {
		g := m.current()
		noted, err := g.Freeze(ctx, epoch, deadline, func(context.Context) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.hold = deadline
			return nil
		})
		if err != nil {
			yield(gc.Object{}, err)
			return
		}
		m.send(g, epoch, noted, yield)
	}
}

// Sweep implements [gc.Owner].
func (m *Memory) Sweep(ctx context.Context, epoch gc.Epoch, dead []gc.Node) (int, error) {
	for _, n := range dead {
		if err := n.Check(); err != nil {
			return 0, err
		}
		if n.Type != m.of {
			return 0, fmt.Errorf("node %q is not kept here: %w", n, errdefs.ErrInvalidArgument)
		}
	}
	return m.current().Sweep(ctx, epoch, dead, func(_ context.Context, dead []gc.Node) (done, removed int, err error) {
		o, ok := m.read(dead[0])
		if !ok || o.Root {
			return 1, 0, nil
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.objects, dead[0])
		delete(m.leases, dead[0])
		return 1, 1, nil
	})
}

// End implements [gc.Owner].
func (m *Memory) End(ctx context.Context, epoch gc.Epoch) error { return m.current().End(ctx, epoch) }
