package snapshottest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
)

// Snapshotter is the only one that a [Memory] has.
const Snapshotter = "overlayfs"

// Memory keeps snapshots in memory. Their mounts describe what is nowhere on
// disk.
type Memory struct {
	leases lease.Registry

	mu        sync.Mutex
	snapshots map[key]entry             // guarded by mu
	members   map[member]lease.Resource // guarded by mu
	last      int                       // guarded by mu
}

type key struct{ namespace, name string }

type entry struct {
	info snapshot.Info
	id   int // in its mounts
}

type member struct {
	namespace string
	lease     lease.Ref
	id        string
}

var (
	_ snapshot.Stores  = (*Memory)(nil)
	_ snapshot.Meter   = (*Memory)(nil)
	_ lease.Members    = (*Memory)(nil)
	_ namespace.Holder = (*Memory)(nil)
)

// NewMemory returns an empty store. The registry says which leases exist.
func NewMemory(leases lease.Registry) *Memory {
	return &Memory{leases: leases, snapshots: make(map[key]entry), members: make(map[member]lease.Resource)}
}

// Traits are a Memory's.
func (m *Memory) Traits() snapshot.Traits { return snapshot.Traits{Rebase: true, RemapIDs: true} }

// In implements [snapshot.Stores].
func (m *Memory) In(scope namespace.Scope, snapshotter string) (snapshot.Store, error) {
	if snapshotter != Snapshotter {
		return nil, fmt.Errorf("snapshotter not loaded: %s: %w", snapshotter, errdefs.ErrInvalidArgument)
	}
	return memoryStore{m: m, scope: scope}, nil
}

// Holdings implements [namespace.Holder].
func (m *Memory) Holdings(context.Context) ([]namespace.Holding, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := make(map[string]bool)
	for k := range m.snapshots {
		names[k.namespace] = true
	}
	var all []namespace.Holding
	for _, n := range slices.Sorted(maps.Keys(names)) {
		all = append(all, namespace.Holding{Namespace: n, Kind: "snapshots", Of: Snapshotter})
	}
	return all, nil
}

// Usage implements [snapshot.Meter].
func (m *Memory) Usage(_ context.Context, scope namespace.Scope, snapshotter string) iter.Seq2[snapshot.Measured, error] {
	return func(yield func(snapshot.Measured, error) bool) {
		if snapshotter != Snapshotter {
			yield(snapshot.Measured{}, fmt.Errorf("snapshotter not loaded: %s: %w", snapshotter, errdefs.ErrInvalidArgument))
			return
		}
		for _, i := range (memoryStore{m: m, scope: scope}).all() {
			if !yield(m.measure(scope.Name, i), nil) {
				return
			}
		}
	}
}

func (m *Memory) measure(ns string, i snapshot.Info) snapshot.Measured {
	m.mu.Lock()
	defer m.mu.Unlock()
	one := snapshot.Measured{Info: i}
	for k, e := range m.snapshots {
		if k.namespace == ns && e.info.Parent == i.Name {
			one.Children++
		}
	}
	for k := range m.members {
		if k.namespace == ns && k.id == i.Name {
			one.Leases = append(one.Leases, k.lease.ID)
		}
	}
	slices.Sort(one.Leases)
	one.Leases = slices.Compact(one.Leases)
	return one
}

// AddMember implements [lease.Members].
func (m *Memory) AddMember(_ context.Context, ns string, l lease.Ref, r lease.Resource) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.members[member{ns, l, r.ID}] = r
	return nil
}

// RemoveMember implements [lease.Members].
func (m *Memory) RemoveMember(_ context.Context, ns string, l lease.Ref, r lease.Resource) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.members, member{ns, l, r.ID})
	return nil
}

// ListMembers implements [lease.Members].
func (m *Memory) ListMembers(_ context.Context, ns string, l lease.Ref) ([]lease.Resource, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []lease.Resource
	for k, r := range m.members {
		if k.namespace == ns && k.lease == l {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b lease.Resource) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

// DropMembers implements [lease.Members].
func (m *Memory) DropMembers(_ context.Context, ns string, l lease.Ref) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.members, func(k member, _ lease.Resource) bool { return k.namespace == ns && k.lease == l })
	return nil
}

type memoryStore struct {
	m     *Memory
	scope namespace.Scope
}

func (s memoryStore) key(name string) key { return key{s.scope.Name, name} }

func (s memoryStore) getLocked(name string) (entry, error) {
	e, ok := s.m.snapshots[s.key(name)]
	if !ok {
		return entry{}, fmt.Errorf("snapshot %q: %w", name, errdefs.ErrNotFound)
	}
	return e, nil
}

// lease looks the scope's lease up, before the lock is taken.
func (s memoryStore) lease(ctx context.Context) (lease.Ref, error) {
	if s.scope.Lease == "" {
		return lease.Ref{}, nil
	}
	return s.m.leases.Lookup(ctx, s.scope)
}

func (s memoryStore) holdLocked(l lease.Ref, name string) {
	if l.ID != "" {
		s.m.members[member{s.scope.Name, l, name}] = lease.Resource{ID: name, Type: "snapshots/" + Snapshotter}
	}
}

func (s memoryStore) Stat(_ context.Context, name string) (snapshot.Info, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	e, err := s.getLocked(name)
	return clone(e.info), err
}

func (s memoryStore) Update(_ context.Context, info snapshot.Info, fields ...string) (snapshot.Info, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	e, err := s.getLocked(info.Name)
	if err != nil {
		return snapshot.Info{}, err
	}
	if e.info.Labels, err = label.Update(e.info.Labels, info.Labels, fields); err != nil {
		return snapshot.Info{}, err
	}
	if _, err := snapshot.IDs(e.info.Labels); err != nil {
		return snapshot.Info{}, err
	}
	e.info.UpdatedAt = time.Now().UTC()
	s.m.snapshots[s.key(info.Name)] = e
	return clone(e.info), nil
}

func (s memoryStore) Usage(_ context.Context, name string) (snapshot.Usage, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	_, err := s.getLocked(name)
	return snapshot.Usage{}, err
}

func (s memoryStore) Mounts(_ context.Context, name string) ([]mount.Mount, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	e, err := s.getLocked(name)
	if err != nil {
		return nil, err
	}
	if e.info.Kind == snapshot.Committed {
		return nil, fmt.Errorf("snapshot %q is committed: %w", name, errdefs.ErrFailedPrecondition)
	}
	return s.mountsLocked(e), nil
}

func (s memoryStore) mountsLocked(e entry) []mount.Mount {
	access := "rw"
	if e.info.Kind == snapshot.View {
		access = "ro"
	}
	options := []string{access, "rbind"}
	if ids, err := snapshot.IDs(e.info.Labels); err == nil { // they were checked
		options = append(ids.Options(), options...)
	}
	return []mount.Mount{{Type: "bind", Source: fmt.Sprintf("/nowhere/%d/fs", e.id), Options: options}}
}

func (s memoryStore) Prepare(ctx context.Context, name, parent string, o snapshot.Options) ([]mount.Mount, error) {
	return s.create(ctx, snapshot.Active, name, parent, o)
}

func (s memoryStore) View(ctx context.Context, name, parent string, o snapshot.Options) ([]mount.Mount, error) {
	return s.create(ctx, snapshot.View, name, parent, o)
}

func (s memoryStore) create(ctx context.Context, kind snapshot.Kind, name, parent string, o snapshot.Options) ([]mount.Mount, error) {
	if err := errors.Join(snapshot.CheckKey(name), snapshot.Options{Labels: o.Labels}.Check(s.m.Traits())); err != nil {
		return nil, err
	}
	l, err := s.lease(ctx)
	if err != nil {
		return nil, err
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	for _, n := range []string{o.Labels[snapshot.LabelTarget], name} {
		if _, err := s.getLocked(n); err == nil {
			s.holdLocked(l, n)
			return nil, fmt.Errorf("snapshot %q: %w", n, errdefs.ErrAlreadyExists)
		}
	}
	if err := s.parentLocked(parent); err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	s.m.last++
	e := entry{id: s.m.last, info: snapshot.Info{
		Kind: kind, Name: name, Parent: parent, Labels: label.Clean(o.Labels), CreatedAt: now, UpdatedAt: now,
	}}
	s.m.snapshots[s.key(name)] = e
	s.holdLocked(l, name)
	return s.mountsLocked(e), nil
}

func (s memoryStore) parentLocked(parent string) error {
	if parent == "" {
		return nil
	}
	p, err := s.getLocked(parent)
	if err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	if p.info.Kind != snapshot.Committed {
		return fmt.Errorf("parent %q is not committed: %w", parent, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (s memoryStore) Commit(ctx context.Context, name, active string, o snapshot.Options) error {
	if err := errors.Join(snapshot.CheckKey(name), o.Check(s.m.Traits())); err != nil {
		return err
	}
	l, err := s.lease(ctx)
	if err != nil {
		return err
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if _, err := s.getLocked(name); err == nil {
		s.holdLocked(l, name)
		return fmt.Errorf("snapshot %q: %w", name, errdefs.ErrAlreadyExists)
	}
	e, err := s.getLocked(active)
	if err != nil {
		return err
	}
	if e.info.Kind != snapshot.Active {
		return fmt.Errorf("snapshot %q is not active: %w", active, errdefs.ErrFailedPrecondition)
	}
	if e.info.Parent == "" {
		e.info.Parent = o.Parent
	}
	if o.Parent != "" && o.Parent != e.info.Parent {
		return fmt.Errorf("snapshot %q has parent %q already: %w", active, e.info.Parent, errdefs.ErrInvalidArgument)
	}
	if err := s.parentLocked(e.info.Parent); err != nil {
		return err
	}
	now := time.Now().UTC()
	e.info.Kind, e.info.Name, e.info.Labels = snapshot.Committed, name, label.Clean(o.Labels)
	e.info.CreatedAt, e.info.UpdatedAt = now, now
	delete(s.m.snapshots, s.key(active))
	delete(s.m.members, member{s.scope.Name, l, active})
	s.m.snapshots[s.key(name)] = e
	s.holdLocked(l, name)
	return nil
}

func (s memoryStore) Remove(ctx context.Context, name string) error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if _, err := s.getLocked(name); err != nil {
		return err
	}
	for k, e := range s.m.snapshots {
		if k.namespace == s.scope.Name && e.info.Parent == name {
			return fmt.Errorf("cannot remove snapshot with child: %w", errdefs.ErrFailedPrecondition)
		}
	}
	delete(s.m.snapshots, s.key(name))
	maps.DeleteFunc(s.m.members, func(k member, _ lease.Resource) bool {
		return k.namespace == s.scope.Name && k.lease.ID == s.scope.Lease && k.id == name
	})
	return nil
}

func (s memoryStore) List(_ context.Context, filters ...string) iter.Seq2[snapshot.Info, error] {
	return func(yield func(snapshot.Info, error) bool) {
		f, err := filter.Parse(filters...)
		if err != nil {
			yield(snapshot.Info{}, err)
			return
		}
		for _, i := range s.all() {
			if f.Match(i.Field) && !yield(i, nil) {
				return
			}
		}
	}
}

func (s memoryStore) all() []snapshot.Info {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	var all []snapshot.Info
	for k, e := range s.m.snapshots {
		if k.namespace == s.scope.Name {
			all = append(all, clone(e.info))
		}
	}
	slices.SortFunc(all, func(a, b snapshot.Info) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func (s memoryStore) Cleanup(context.Context) error { return nil }

func clone(i snapshot.Info) snapshot.Info {
	i.Labels = maps.Clone(i.Labels)
	return i
}
