package activationtest

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
)

// snapshots is where a Memory has its snapshots, which are nowhere on disk.
const snapshots = "/snapshots"

// Memory keeps activations in memory, and mounts nothing.
type Memory struct {
	leases lease.Registry

	mu     sync.Mutex
	all    map[key]activation.Info // guarded by mu
	places map[string]place        // guarded by mu; by the directory of a snapshot
	last   int                     // guarded by mu
}

type key struct{ namespace, name string }

type place struct {
	namespace string
	active    bool
}

var _ activation.Stores = (*Memory)(nil)

// NewMemory returns an empty store. The registry says which leases exist.
func NewMemory(leases lease.Registry) *Memory {
	return &Memory{leases: leases, all: make(map[key]activation.Info), places: make(map[string]place)}
}

// Fixture is m with snapshots to test it on.
func (m *Memory) Fixture() Fixture {
	return Fixture{
		Stores: m, Allows: true,
		Image:     func(_ *testing.T, ns string) string { return m.place(ns, false) + "/layer.erofs" },
		Active:    func(_ *testing.T, ns string) string { return m.place(ns, true) },
		Committed: func(_ *testing.T, ns string) string { return m.place(ns, false) },
	}
}

func (m *Memory) place(ns string, active bool) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last++
	dir := fmt.Sprintf("%s/%d", snapshots, m.last)
	m.places[dir] = place{ns, active}
	return dir
}

// In implements [activation.Stores].
func (m *Memory) In(scope namespace.Scope) activation.Store { return memoryStore{m, scope} }

type memoryStore struct {
	m     *Memory
	scope namespace.Scope
}

func (s memoryStore) key(name string) key { return key{s.scope.Name, name} }

// Activate implements [activation.Store].
func (s memoryStore) Activate(ctx context.Context, name string, mounts []mount.Mount, o activation.Options) (activation.Info, error) {
	if err := activation.Check(name, mounts, o); err != nil {
		return activation.Info{}, err
	}
	plan := activation.NewPlan(mounts, o, "erofs", "loop")
	if plan.First < 0 {
		return activation.Info{}, fmt.Errorf("activation %s: %w", name, errdefs.ErrNotImplemented)
	}
	if s.scope.Lease != "" {
		if _, err := s.m.leases.Lookup(ctx, s.scope); err != nil {
			return activation.Info{}, err
		}
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if _, ok := s.m.all[s.key(name)]; ok {
		return activation.Info{}, fmt.Errorf("activation %s: %w", name, errdefs.ErrAlreadyExists)
	}
	s.m.last++
	info := activation.Info{Name: name, System: slices.Clone(mounts[plan.First:]), Labels: label.Clean(o.Labels)}
	points := fmt.Sprintf("/mounts/%d", s.m.last)
	for i, m := range mounts[:min(plan.First+1, len(mounts))] {
		m, err := s.transformLocked(m, plan.Steps[i], info.Active)
		if err != nil {
			return activation.Info{}, err
		}
		if i == plan.First {
			info.System[0] = m
			break
		}
		if m, err = s.mountLocked(m, points); err != nil {
			return activation.Info{}, err
		}
		info.Active = append(info.Active, activation.Active{Mount: m, MountedAt: time.Now().UTC(), MountPoint: fmt.Sprintf("%s/%d", points, i)})
	}
	if o.Temporary {
		top := info.Active[len(info.Active)-1].MountPoint
		info.System = []mount.Mount{{Type: "bind", Source: top, Options: []string{"rbind"}}}
	}
	s.m.all[s.key(name)] = info
	return info, nil
}

func (s memoryStore) transformLocked(m mount.Mount, step activation.Step, made []activation.Active) (mount.Mount, error) {
	var err error
	m.Type = step.Type
	for _, word := range step.Transforms {
		var dirs []activation.Dir
		switch word {
		case activation.Format:
			m, err = activation.Expand(m, made)
		case activation.Mkdir:
			m, dirs, err = activation.TakeDirs(m)
		case activation.Mkfs:
			dirs = []activation.Dir{{Path: m.Source}}
			m, _, err = activation.TakeImage(m)
		}
		for _, d := range dirs {
			if err == nil {
				err = s.checkLocked(d.Path, true, "/mounts")
			}
		}
		if err != nil {
			return mount.Mount{}, err
		}
	}
	return m, nil
}

// mountLocked does what a store that mounts would check.
func (s memoryStore) mountLocked(m mount.Mount, points string) (mount.Mount, error) {
	var read, write []string
	switch m.Type {
	case "erofs", "loop":
		m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "loop" })
		read = []string{m.Source}
	case "bind":
		if read = []string{m.Source}; !slices.Contains(m.Options, "ro") {
			write = read
		}
	case "overlay":
		for _, o := range m.Options {
			word, value, _ := strings.Cut(o, "=")
			switch word {
			case "lowerdir":
				read = append(read, strings.Split(value, ":")...)
			case "upperdir", "workdir":
				write = append(write, value)
			}
		}
	default:
		return mount.Mount{}, fmt.Errorf("mount of type %q: %w", m.Type, errdefs.ErrNotImplemented)
	}
	for _, p := range read {
		if err := s.checkLocked(p, false, points); err != nil {
			return mount.Mount{}, err
		}
	}
	for _, p := range write {
		if err := s.checkLocked(p, true, points); err != nil {
			return mount.Mount{}, err
		}
	}
	return m, nil
}

func (s memoryStore) checkLocked(p string, write bool, points string) error {
	if strings.HasPrefix(p, points+"/") && path.Clean(p) == p {
		return nil
	}
	if !strings.HasPrefix(p, snapshots+"/") {
		return fmt.Errorf("%s is no snapshot's: %w", p, errdefs.ErrNotImplemented)
	}
	for dir, of := range s.m.places {
		if (p == dir || strings.HasPrefix(p, dir+"/")) && path.Clean(p) == p && of.namespace == s.scope.Name && (of.active || !write) {
			return nil
		}
	}
	return fmt.Errorf("%s is not of a snapshot of the namespace: %w", p, errdefs.ErrInvalidArgument)
}

// Deactivate implements [activation.Store].
func (s memoryStore) Deactivate(_ context.Context, name string) error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if _, ok := s.m.all[s.key(name)]; !ok {
		return fmt.Errorf("activation %s: %w", name, errdefs.ErrNotFound)
	}
	delete(s.m.all, s.key(name))
	return nil
}

// Info implements [activation.Store].
func (s memoryStore) Info(_ context.Context, name string) (activation.Info, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	i, ok := s.m.all[s.key(name)]
	if !ok {
		return activation.Info{}, fmt.Errorf("activation %s: %w", name, errdefs.ErrNotFound)
	}
	return i, nil
}

// List implements [activation.Store].
func (s memoryStore) List(context.Context) iter.Seq2[activation.Info, error] {
	s.m.mu.Lock()
	all := maps.Clone(s.m.all)
	s.m.mu.Unlock()
	return func(yield func(activation.Info, error) bool) {
		var names []string
		for k := range all {
			if k.namespace == s.scope.Name {
				names = append(names, k.name)
			}
		}
		slices.Sort(names)
		for _, n := range names {
			if !yield(all[s.key(n)], nil) {
				return
			}
		}
	}
}
