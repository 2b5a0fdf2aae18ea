package netd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/container/containertest"
	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/network"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

// errCut is what every step says once netd has been killed.
var errCut = errors.New("netd is dead")

// A world is what outlives netd: a kernel, plugins, containers and tasks. It
// can kill netd before or after any of its steps.
type world struct {
	t          *testing.T
	cfg        Config
	containers *containertest.Memory

	mu         sync.Mutex
	steps, at  int // at 0 is never
	after      bool
	dead       bool
	trail      []string
	boot       string
	tasks      map[key]task.Process
	spaces     map[uint32]nsID   // by pid
	pins       map[string]nsID   // by path
	addresses  map[string]string // by id of the attachment, as host-local has them
	devices    map[nsID]string   // eth0, by the id that it is of
	rules      map[string]int    // by id
	quiet      map[nsID]bool     // they refuse routers
	listening  map[uint16]bool
	addFails   error
	delFails   error
	running    int // plugins, of all containers
	runningMax int
	byID       map[string]int
	block      chan struct{} // Add waits for it

	// synced is what of the disk is, for a directory the names in it and for
	// a file its bytes, if the power is cut.
	synced map[string]map[string]string
}

const defaultList = `{"cniVersion":"1.0.0","name":"default","plugins":[{"type":"bridge","bridge":"gantry0","ipam":{"type":"host-local","ranges":[[{"subnet":"10.87.0.0/16"}]]}},{"type":"portmap","capabilities":{"portMappings":true}}]}`

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{
		t: t, boot: "one", containers: containertest.NewMemory(),
		cfg:   Config{Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Networks: []string{filepath.Join(dir, "networks")}, Plugins: []string{"/nonexistent"}},
		tasks: map[key]task.Process{}, spaces: map[uint32]nsID{}, pins: map[string]nsID{}, addresses: map[string]string{},
		devices: map[nsID]string{}, rules: map[string]int{}, listening: map[uint16]bool{}, byID: map[string]int{}, quiet: map[nsID]bool{},
		synced: map[string]map[string]string{},
	}
	w.network("default", defaultList)
	return w
}

func (w *world) network(name, list string) {
	w.t.Helper()
	dir := w.cfg.Networks[0]
	if err := os.MkdirAll(dir, 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".conflist"), []byte(list), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// open starts netd.
func (w *world) open() *Store {
	w.t.Helper()
	s, err := w.tryOpen()
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) tryOpen() (*Store, error) {
	log := slog.New(slog.DiscardHandler)
	return open(w.cfg, Needs{Containers: cutContainers{w}, Tasks: worldTasks{w: w}, Log: log}, cutDisk{w}, w, w)
}

// cut has netd die at a step.
func (w *world) cut(at int, after bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.steps, w.at, w.after, w.dead, w.trail = 0, at, after, false, nil
}

func (w *world) step(name string, do func() error) error {
	w.mu.Lock()
	if w.dead {
		w.mu.Unlock()
		return errCut
	}
	w.steps++
	w.trail = append(w.trail, name)
	hit := w.steps == w.at
	w.dead = hit
	w.mu.Unlock()
	if hit && !w.after {
		return errCut
	}
	err := do()
	if hit {
		return errCut
	}
	return err
}

func (w *world) effect(name string, do func()) error {
	return w.step(name, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		do()
		return nil
	})
}

// start makes a container, unless there is one, and a task that is created.
func (w *world) start(k key, pid uint32, labels map[string]string) gate.Request {
	w.t.Helper()
	store := w.containers.In(namespace.Scope{Name: k.namespace})
	_, err := store.Create(context.Background(), container.Container{
		ID: k.container, Labels: labels, Runtime: container.Runtime{Name: "r"}, Spec: &typed.Value{URL: "u", Data: []byte("{}")},
	})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tasks[k] = task.Process{ContainerID: k.container, Pid: pid, Status: task.Created}
	w.spaces[pid] = nsID{4, uint64(pid) + 1000}
	return gate.Request{Namespace: k.namespace, Container: k.container, Pid: int(pid), Labels: labels}
}

func (w *world) status(k key, status task.Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.tasks[k]
	p.Status = status
	w.tasks[k] = p
}

func (w *world) deleteTask(k key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.spaces, w.tasks[k].Pid)
	delete(w.tasks, k)
}

func (w *world) labels(k key) map[string]string {
	w.t.Helper()
	c, err := w.containers.In(namespace.Scope{Name: k.namespace}).Get(context.Background(), k.container)
	if err != nil {
		w.t.Fatal(err)
	}
	return c.Labels
}

// connected checks that a container has one attachment, whole.
func (w *world) connected(k key) {
	w.t.Helper()
	w.mu.Lock()
	id := w.devices[w.spaces[w.tasks[k].Pid]]
	address := w.addresses[id]
	w.mu.Unlock()
	if id == "" || address == "" {
		w.t.Errorf("%s is not connected (device of %q, address %q)", k, id, address)
	}
	if got := w.labels(k)[network.LabelAddresses]; got != address {
		w.t.Errorf("%s is told address %q, and has %q", k, got, address)
	}
}

// want checks how many attachments there are, in every place where one leaves
// something.
func (w *world) want(n int) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	dirs, err := os.ReadDir(filepath.Join(w.cfg.Root, "attachments"))
	if err != nil {
		w.t.Error(err)
	}
	if len(w.addresses) != n || len(w.devices) != n || len(w.pins) != n || len(dirs) != n || len(w.rules) > n {
		w.t.Errorf("addresses %v, devices %v, pins %v, %d records, rules %v; want %d of each", w.addresses, w.devices, w.pins, len(dirs), w.rules, n)
	}
}

// settleAll looks at everything once, as Reconcile does after a start.
func settleAll(t *testing.T, s *Store) error {
	t.Helper()
	s.mu.Lock()
	keys := slices.Collect(maps.Keys(s.records))
	s.mu.Unlock()
	var errs []error
	for _, k := range keys {
		errs = append(errs, s.look(t.Context(), k))
	}
	return errors.Join(errs...)
}

// The kernel.

func (w *world) Boot() (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.boot, nil
}

func (w *world) Open(pid uint32) (*netns, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id, ok := w.spaces[pid]
	if !ok {
		return nil, fmt.Errorf("process %d: %w", pid, errdefs.ErrNotFound)
	}
	return &netns{id: id, node: id == nsID{}}, nil
}

func (w *world) Pin(n *netns, path string) error {
	return w.effect("pin", func() { w.pins[path] = n.id })
}

func (w *world) Pinned(path string) (nsID, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id, ok := w.pins[path]
	return id, ok, nil
}

func (w *world) Unpin(path string) error {
	return w.effect("unpin", func() { delete(w.pins, path) })
}

func (w *world) RefuseRouters(n *netns) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.quiet[n.id] = true
	return nil
}

func (w *world) Taken(p network.Port) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.listening[p.Host] {
		return fmt.Errorf("port %s: %w", p, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// The plugins, which can be killed between any two things that they do.

func (w *world) enter(c call) func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running++
	w.byID[c.id]++
	w.runningMax = max(w.runningMax, w.running)
	if w.byID[c.id] > 1 {
		w.t.Errorf("two plugins work on %s at once", c.id)
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.running--
		w.byID[c.id]--
	}
}

func (w *world) Add(ctx context.Context, c call) ([]string, error) {
	defer w.enter(c)()
	if w.block != nil {
		select {
		case <-w.block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var ns nsID
	var address string
	w.mu.Lock()
	ns, pinned := w.pins[c.netns]
	other := w.devices[ns]
	fails, quiet := w.addFails, w.quiet[ns]
	w.mu.Unlock()
	if !quiet {
		w.t.Errorf("connect %s: it would believe any router", c.id)
	}
	if !pinned || other != "" {
		w.t.Errorf("connect %s: namespace pinned %t, has the device of %q", c.id, pinned, other)
	}
	if err := w.effect("allocate", func() {
		for i := 2; address == ""; i++ {
			a := fmt.Sprintf("10.87.0.%d/16", i)
			if !slices.Contains(slices.Collect(maps.Values(w.addresses)), a) {
				address = a
			}
		}
		w.addresses[c.id] = address
	}); err != nil {
		return nil, err
	}
	if err := w.effect("device", func() { w.devices[ns] = c.id }); err != nil || fails != nil {
		return nil, errors.Join(err, fails)
	}
	if len(c.ports) > 0 {
		if err := w.effect("rules", func() { w.rules[c.id] = len(c.ports) }); err != nil {
			return nil, err
		}
	}
	return []string{address}, nil
}

func (w *world) Del(_ context.Context, c call) error {
	defer w.enter(c)()
	w.mu.Lock()
	fails := w.delFails
	w.mu.Unlock()
	if fails != nil {
		return fails
	}
	if err := w.effect("remove rules", func() {
		if len(c.ports) > 0 {
			delete(w.rules, c.id)
		}
	}); err != nil {
		return err
	}
	if err := w.effect("remove device", func() {
		for ns, id := range w.devices {
			if id == c.id && (w.pins[c.netns] == ns || c.netns == "") {
				delete(w.devices, ns)
			}
		}
	}); err != nil {
		return err
	}
	return w.effect("release", func() { delete(w.addresses, c.id) })
}

func (w *world) Collect(context.Context, []byte, []string) error { return nil }

// The disk and taskd, as netd reaches them.

type cutDisk struct{ w *world }

func (d cutDisk) Mkdir(dir string) error {
	return d.w.step("mkdir", func() error { return osDisk{}.Mkdir(dir) })
}

func (d cutDisk) Write(name string, data []byte) error {
	return d.w.step("write", func() error { return osDisk{}.Write(name, data) })
}

func (d cutDisk) Rename(from, to string) error {
	return d.w.step("rename", func() error { return osDisk{}.Rename(from, to) })
}

func (d cutDisk) SyncDir(dir string) error {
	return d.w.step("sync", func() error {
		entries, err := os.ReadDir(dir)
		names := make(map[string]string)
		for _, e := range entries {
			b, _ := os.ReadFile(filepath.Join(dir, e.Name())) // written files are synced
			names[e.Name()] = string(b)
		}
		d.w.mu.Lock()
		d.w.synced[dir] = names
		d.w.mu.Unlock()
		return errors.Join(err, osDisk{}.SyncDir(dir))
	})
}

// blackout cuts the power: what was not synced is forgotten, and so is all of
// the kernel. Addresses are files of host-local, and stay.
func (w *world) blackout() {
	w.t.Helper()
	root := filepath.Join(w.cfg.Root, "attachments")
	if err := os.RemoveAll(root); err != nil {
		w.t.Fatal(err)
	}
	for dir := range w.synced[root] {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			w.t.Fatal(err)
		}
		for name, text := range w.synced[filepath.Join(root, dir)] {
			if err := os.WriteFile(filepath.Join(root, dir, name), []byte(text), 0o600); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	w.boot += "+"
	clear(w.pins)
	clear(w.devices)
	clear(w.rules)
	clear(w.tasks)
	clear(w.spaces)
}

func (d cutDisk) RemoveAll(dir string) error {
	return d.w.step("remove", func() error { return osDisk{}.RemoveAll(dir) })
}

type cutContainers struct{ w *world }

func (c cutContainers) In(scope namespace.Scope) container.Store {
	return cutContainersIn{c.w.containers.In(scope), c.w}
}

type cutContainersIn struct {
	container.Store
	w *world
}

func (c cutContainersIn) Update(ctx context.Context, k container.Container, fields ...string) (out container.Container, err error) {
	err = c.w.step("label", func() (err error) {
		out, err = c.Store.Update(ctx, k, fields...)
		return err
	})
	return out, err
}

type worldTasks struct {
	task.Service // for the methods that nobody calls
	w            *world
	namespace    string
}

func (s worldTasks) In(scope namespace.Scope) task.Service {
	return worldTasks{w: s.w, namespace: scope.Name}
}

func (s worldTasks) Get(_ context.Context, id, _ string) (task.Process, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	p, ok := s.w.tasks[key{s.namespace, id}]
	if !ok {
		return p, fmt.Errorf("task %s: %w", id, errdefs.ErrNotFound)
	}
	return p, nil
}

func wantKind(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func wantText(t *testing.T, err error, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want it to say %q", err, text)
		}
	}
}
