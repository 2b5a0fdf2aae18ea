package containertest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/typed"
)

// Memory keeps containers in memory.
type Memory struct {
	mu         sync.Mutex
	containers map[key]container.Container // guarded by mu
}

type key struct{ namespace, id string }

var _ container.Stores = (*Memory)(nil)

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{containers: make(map[key]container.Container)} }

// In implements [container.Stores].
func (m *Memory) In(scope namespace.Scope) container.Store {
	return memoryStore{m: m, namespace: scope.Name}
}

// Holdings implements [namespace.Holder].
func (m *Memory) Holdings(context.Context) ([]namespace.Holding, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := make(map[string]bool)
	for k := range m.containers {
		names[k.namespace] = true
	}
	var all []namespace.Holding
	for _, n := range slices.Sorted(maps.Keys(names)) {
		all = append(all, namespace.Holding{Namespace: n, Kind: "containers"})
	}
	return all, nil
}

type memoryStore struct {
	m         *Memory
	namespace string
}

func (s memoryStore) Get(_ context.Context, id string) (container.Container, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	return s.getLocked(id)
}

func (s memoryStore) getLocked(id string) (container.Container, error) {
	c, ok := s.m.containers[key{s.namespace, id}]
	if !ok {
		return c, fmt.Errorf("container %q in namespace %q: %w", id, s.namespace, errdefs.ErrNotFound)
	}
	return clone(c), nil
}

func (s memoryStore) List(_ context.Context, filters ...string) ([]container.Container, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	var all []container.Container
	for k, c := range s.m.containers {
		if k.namespace == s.namespace && f.Match(c.Field) {
			all = append(all, clone(c))
		}
	}
	slices.SortFunc(all, func(a, b container.Container) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

func (s memoryStore) Create(_ context.Context, c container.Container) (container.Container, error) {
	if err := container.Check(c); err != nil {
		return container.Container{}, err
	}
	c = clone(c)
	c.Labels = label.Clean(c.Labels)
	c.CreatedAt = time.Now().UTC()
	c.UpdatedAt = c.CreatedAt
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	k := key{s.namespace, c.ID}
	if _, ok := s.m.containers[k]; ok {
		return container.Container{}, fmt.Errorf("container %q: %w", c.ID, errdefs.ErrAlreadyExists)
	}
	s.m.containers[k] = c
	return clone(c), nil
}

func (s memoryStore) Update(_ context.Context, c container.Container, fields ...string) (container.Container, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	old, err := s.getLocked(c.ID)
	if err != nil {
		return container.Container{}, err
	}
	updated, err := container.Update(old, clone(c), fields)
	if err != nil {
		return container.Container{}, err
	}
	updated.UpdatedAt = time.Now().UTC()
	s.m.containers[key{s.namespace, c.ID}] = updated
	return clone(updated), nil
}

func (s memoryStore) Delete(_ context.Context, id string) error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if _, err := s.getLocked(id); err != nil {
		return err
	}
	delete(s.m.containers, key{s.namespace, id})
	return nil
}

// clone returns a container that shares nothing with c.
func clone(c container.Container) container.Container {
	c.Labels = maps.Clone(c.Labels)
	c.Spec = cloneValue(c.Spec)
	c.Runtime.Options = cloneValue(c.Runtime.Options)
	c.Extensions = maps.Clone(c.Extensions)
	for k, v := range c.Extensions {
		c.Extensions[k] = *cloneValue(&v)
	}
	return c
}

func cloneValue(v *typed.Value) *typed.Value {
	if v == nil {
		return nil
	}
	return &typed.Value{URL: v.URL, Data: bytes.Clone(v.Data)}
}
