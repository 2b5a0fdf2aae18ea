package leasetest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

// Memory is leases in memory, their registry, and all their resources. Its zero
// value has none.
type Memory struct {
	members Members

	// mu guards the fields below it.
	mu   sync.Mutex
	last uint64 // generation
	all  map[leaseKey]record
}

var (
	_ lease.Stores   = (*Memory)(nil)
	_ lease.Registry = (*Memory)(nil)
	_ lease.Store    = memory{}
	_ lease.Members  = (*Members)(nil)
)

type leaseKey struct{ ns, id string }

type record struct {
	lease.Lease
	generation uint64
}

// In implements lease.Stores.
func (m *Memory) In(scope namespace.Scope) lease.Store { return memory{m, scope.Name} }

// Lookup implements lease.Registry.
func (m *Memory) Lookup(_ context.Context, scope namespace.Scope) (lease.Ref, error) {
	if scope.Lease == "" {
		return lease.Ref{}, fmt.Errorf("no lease to look up: %w", errdefs.ErrInvalidArgument)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.livingLocked(scope.Name, scope.Lease)
	if !ok {
		return lease.Ref{}, fmt.Errorf("lease does not exist: %w", errdefs.ErrNotFound)
	}
	return lease.Ref{ID: r.ID, Generation: r.generation}, nil
}

func (m *Memory) livingLocked(ns, id string) (record, bool) {
	r, ok := m.all[leaseKey{ns, id}]
	if at, expires := r.Expires(); expires && !time.Now().Before(at) {
		return record{}, false
	}
	return r, ok
}

// A memory is the leases of one namespace.
type memory struct {
	*Memory
	ns string
}

func (m memory) Create(_ context.Context, id string, labels map[string]string) (lease.Lease, error) {
	if err := label.Check(labels); err != nil {
		return lease.Lease{}, err
	}
	if err := lease.CheckID(id); err != nil && id != "" {
		return lease.Lease{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last++
	if id == "" {
		id = "memory-" + strconv.FormatUint(m.last, 10)
	}
	if _, ok := m.livingLocked(m.ns, id); ok {
		return lease.Lease{}, fmt.Errorf("lease %q: %w", id, errdefs.ErrAlreadyExists)
	}
	if m.all == nil {
		m.all = make(map[leaseKey]record)
	}
	l := lease.Lease{ID: id, Labels: label.Clean(labels), CreatedAt: time.Now().UTC()}
	m.all[leaseKey{m.ns, id}] = record{Lease: l, generation: m.last}
	return copied(l), nil
}

func (m memory) Get(_ context.Context, id string) (lease.Lease, error) {
	r, err := m.get(id)
	return r.Lease, err
}

func (m memory) get(id string) (record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.livingLocked(m.ns, id)
	if !ok {
		return record{}, fmt.Errorf("lease %q: %w", id, errdefs.ErrNotFound)
	}
	r.Lease = copied(r.Lease)
	return r, nil
}

func (m memory) Delete(ctx context.Context, id string, _ bool) error {
	m.mu.Lock()
	r, ok := m.livingLocked(m.ns, id)
	delete(m.all, leaseKey{m.ns, id})
	m.mu.Unlock()
	if !ok {
		return fmt.Errorf("lease %q: %w", id, errdefs.ErrNotFound)
	}
	return m.members.DropMembers(ctx, m.ns, lease.Ref{ID: id, Generation: r.generation})
}

func (m memory) List(_ context.Context, filters ...string) ([]lease.Lease, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []lease.Lease
	for key := range m.all {
		if r, ok := m.livingLocked(key.ns, key.id); ok && key.ns == m.ns && f.Match(r.Field) {
			found = append(found, copied(r.Lease))
		}
	}
	slices.SortFunc(found, func(a, b lease.Lease) int { return cmp.Compare(a.ID, b.ID) })
	return found, nil
}

func (m memory) AddResource(ctx context.Context, id string, r lease.Resource) error {
	l, err := m.get(id)
	if err != nil {
		return err
	}
	return m.members.AddMember(ctx, m.ns, lease.Ref{ID: id, Generation: l.generation}, r)
}

func (m memory) DeleteResource(ctx context.Context, id string, r lease.Resource) error {
	l, err := m.get(id)
	if err != nil {
		return err
	}
	return m.members.RemoveMember(ctx, m.ns, lease.Ref{ID: id, Generation: l.generation}, r)
}

func (m memory) ListResources(ctx context.Context, id string) ([]lease.Resource, error) {
	l, err := m.get(id)
	if err != nil {
		return nil, err
	}
	return m.members.ListMembers(ctx, m.ns, lease.Ref{ID: id, Generation: l.generation})
}

func copied(l lease.Lease) lease.Lease {
	l.Labels = maps.Clone(l.Labels)
	return l
}

// Members is members in memory, of every type. Its zero value has none.
type Members struct {
	// mu guards the fields below it.
	mu  sync.Mutex
	all map[memberKey]map[lease.Resource]bool
}

type memberKey struct {
	ns  string
	ref lease.Ref
}

// AddMember implements lease.Members.
func (m *Members) AddMember(_ context.Context, ns string, l lease.Ref, r lease.Resource) error {
	if err := r.Check(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := memberKey{ns, l}
	if m.all == nil {
		m.all = make(map[memberKey]map[lease.Resource]bool)
	}
	if m.all[key] == nil {
		m.all[key] = make(map[lease.Resource]bool)
	}
	m.all[key][r] = true
	return nil
}

// RemoveMember implements lease.Members.
func (m *Members) RemoveMember(_ context.Context, ns string, l lease.Ref, r lease.Resource) error {
	if err := r.Check(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.all[memberKey{ns, l}], r)
	return nil
}

// ListMembers implements lease.Members.
func (m *Members) ListMembers(_ context.Context, ns string, l lease.Ref) ([]lease.Resource, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Keys(m.all[memberKey{ns, l}]), lease.Resource.Compare), nil
}

// DropMembers implements lease.Members.
func (m *Members) DropMembers(_ context.Context, ns string, l lease.Ref) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.all, memberKey{ns, l})
	return nil
}
