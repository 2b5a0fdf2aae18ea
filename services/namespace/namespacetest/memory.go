package namespacetest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/namespace"
)

// Memory is namespaces in memory.
type Memory struct {
	holders []namespace.Holder

	// mu guards the fields below it.
	mu  sync.Mutex
	all map[string]map[string]string // labels by name
}

var (
	_ namespace.Store  = (*Memory)(nil)
	_ namespace.Holder = (*Holder)(nil)
)

// NewMemory returns no namespaces but those in which the holders have something.
func NewMemory(holders ...namespace.Holder) *Memory {
	return &Memory{holders: holders, all: make(map[string]map[string]string)}
}

// Get implements namespace.Store.
func (m *Memory) Get(_ context.Context, name string) (namespace.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return namespace.Info{Name: name, Labels: maps.Clone(m.all[name])}, nil
}

// List implements namespace.Store.
func (m *Memory) List(ctx context.Context) ([]namespace.Info, error) {
	names := map[string]map[string]string{}
	for _, h := range m.holders {
		held, err := h.Holdings(ctx)
		if err != nil {
			continue
		}
		for _, holding := range held {
			names[holding.Namespace] = nil
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.Copy(names, m.all)
	var infos []namespace.Info
	for name, labels := range names {
		infos = append(infos, namespace.Info{Name: name, Labels: maps.Clone(labels)})
	}
	slices.SortFunc(infos, func(a, b namespace.Info) int { return cmp.Compare(a.Name, b.Name) })
	return infos, nil
}

// Create implements namespace.Store.
func (m *Memory) Create(_ context.Context, info namespace.Info) (namespace.Info, error) {
	if err := ident.Check(info.Name); err != nil {
		return namespace.Info{}, err
	}
	if err := label.Check(info.Labels); err != nil {
		return namespace.Info{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.all[info.Name]; ok {
		return namespace.Info{}, fmt.Errorf("namespace %q: %w", info.Name, errdefs.ErrAlreadyExists)
	}
	m.all[info.Name] = label.Clean(info.Labels)
	return namespace.Info{Name: info.Name, Labels: label.Clean(info.Labels)}, nil
}

// Update implements namespace.Store.
func (m *Memory) Update(_ context.Context, info namespace.Info, fields ...string) (namespace.Info, error) {
	if err := ident.Check(info.Name); err != nil {
		return namespace.Info{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	labels, err := namespace.UpdateLabels(m.all[info.Name], info.Labels, fields)
	if err != nil {
		return namespace.Info{}, err
	}
	m.all[info.Name] = labels
	return namespace.Info{Name: info.Name, Labels: maps.Clone(labels)}, nil
}

// Delete implements namespace.Store.
func (m *Memory) Delete(ctx context.Context, name string) error {
	var held []namespace.Holding
	for _, h := range m.holders {
		all, err := h.Holdings(ctx)
		if err != nil {
			return fmt.Errorf("namespace %q: %v: %w", name, err, errdefs.ErrUnavailable)
		}
		for _, holding := range all {
			if holding.Namespace == name {
				held = append(held, holding)
			}
		}
	}
	if len(held) > 0 {
		return namespace.NotEmpty(name, held)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.all[name]; !ok {
		return fmt.Errorf("namespace %q: %w", name, errdefs.ErrNotFound)
	}
	delete(m.all, name)
	return nil
}

// Holder is a holder in memory. Its zero value holds nothing.
type Holder struct {
	// mu guards the fields below it.
	mu   sync.Mutex
	held []namespace.Holding
	err  error
}

// Holdings implements namespace.Holder.
func (h *Holder) Holdings(context.Context) ([]namespace.Holding, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.held), h.err
}

// Hold adds holdings.
func (h *Holder) Hold(held ...namespace.Holding) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held = append(h.held, held...)
}

// Release takes holdings away.
func (h *Holder) Release(held ...namespace.Holding) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held = slices.DeleteFunc(h.held, func(x namespace.Holding) bool { return slices.Contains(held, x) })
}

// Fail makes Holdings return err, or no error any more.
func (h *Holder) Fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
}
