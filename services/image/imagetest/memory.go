package imagetest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/image"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

// Memory is images in memory.
type Memory struct {
	leases lease.Stores // nil if there are none

	// mu guards the fields below it, and keeps leases in step with them.
	mu  sync.Mutex
	all map[imageKey]image.Image
}

var (
	_ image.Stores = (*Memory)(nil)
	_ image.Store  = memory{}
)

type imageKey struct{ ns, name string }

// NewMemory returns no images. Those that expire become resources of leases; nil
// is a node without any.
func NewMemory(leases lease.Stores) *Memory {
	return &Memory{leases: leases, all: make(map[imageKey]image.Image)}
}

// In implements image.Stores.
func (m *Memory) In(scope namespace.Scope) image.Store { return memory{m, scope} }

// A memory is the images of one scope.
type memory struct {
	*Memory
	scope namespace.Scope
}

func (m memory) key(name string) imageKey { return imageKey{m.scope.Name, name} }

func (m memory) Get(_ context.Context, name string) (image.Image, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, ok := m.all[m.key(name)]
	if !ok {
		return image.Image{}, fmt.Errorf("image %q: %w", name, errdefs.ErrNotFound)
	}
	return i.Clean(), nil
}

func (m memory) List(_ context.Context, filters ...string) ([]image.Image, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []image.Image
	for key, i := range m.all {
		if key.ns == m.scope.Name && f.Match(i.Field) {
			found = append(found, i.Clean())
		}
	}
	slices.SortFunc(found, func(a, b image.Image) int { return cmp.Compare(a.Name, b.Name) })
	return found, nil
}

func (m memory) Create(ctx context.Context, i image.Image, o image.Options) (image.Image, error) {
	at, err := o.Now(time.Now())
	if err != nil {
		return image.Image{}, err
	}
	if err := i.Check(); err != nil {
		return image.Image{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.all[m.key(i.Name)]; ok {
		return image.Image{}, fmt.Errorf("image %q: %w", i.Name, errdefs.ErrAlreadyExists)
	}
	i = i.Clean()
	i.CreatedAt, i.UpdatedAt = at, at
	return m.putLocked(ctx, i)
}

func (m memory) Update(ctx context.Context, i image.Image, o image.Options, fields ...string) (image.Image, error) {
	at, err := o.Now(time.Now())
	if err != nil {
		return image.Image{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old, ok := m.all[m.key(i.Name)]
	if !ok {
		return image.Image{}, fmt.Errorf("image %q: %w", i.Name, errdefs.ErrNotFound)
	}
	updated, err := image.Updated(old, i, fields)
	if err != nil {
		return image.Image{}, err
	}
	updated.UpdatedAt = at
	return m.putLocked(ctx, updated)
}

func (m memory) putLocked(ctx context.Context, i image.Image) (image.Image, error) {
	if m.scope.Lease != "" && i.Expires() {
		if err := m.addToLease(ctx, i.Name); err != nil {
			return image.Image{}, err
		}
	}
	m.all[m.key(i.Name)] = i
	return i.Clean(), nil
}

func (m memory) addToLease(ctx context.Context, name string) error {
	err := error(errdefs.ErrNotFound)
	if m.leases != nil {
		err = m.leases.In(m.scope).AddResource(ctx, m.scope.Lease, lease.Resource{ID: name, Type: lease.TypeImages})
	}
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("lease does not exist: %w", errdefs.ErrNotFound)
	}
	return err
}

func (m memory) Delete(ctx context.Context, name string, o image.DeleteOptions) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, ok := m.all[m.key(name)]
	if !ok {
		return fmt.Errorf("image %q: %w", name, errdefs.ErrNotFound)
	}
	if o.Target != "" && o.Target != i.Target.Digest {
		return fmt.Errorf("image %q with target %s: %w", name, o.Target, errdefs.ErrNotFound)
	}
	delete(m.all, m.key(name))
	if m.scope.Lease == "" || m.leases == nil {
		return nil
	}
	err := m.leases.In(m.scope).DeleteResource(ctx, m.scope.Lease, lease.Resource{ID: name, Type: lease.TypeImages})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
