package taskd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/activation/activationtest"
	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/runner"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/task/tasktest"
)

// errCut is what every step says once the daemon has ended.
var errCut = errors.New("the daemon has ended")

// A cut ends the daemon at one of its steps: before it has its effect, or just
// after it had it. Nothing that the daemon does later has any.
type cut struct {
	mu    sync.Mutex
	steps int
	at    int // 0 is never
	after bool
	dead  bool
	trail []string
}

func (c *cut) step(name string, do func() error) error {
	c.mu.Lock()
	if c.dead {
		c.mu.Unlock()
		return errCut
	}
	c.steps++
	c.trail = append(c.trail, name)
	hit := c.steps == c.at
	c.dead = hit
	c.mu.Unlock()
	if hit && !c.after {
		return errCut
	}
	err := do()
	if hit {
		return errCut
	}
	return err
}

// restart counts from now.
func (c *cut) restart(at int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at, c.steps, c.trail = at, 0, nil
}

// ended is for what has no effect.
func (c *cut) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return errCut
	}
	return nil
}

// cutDisk is the disk until the cut.
type cutDisk struct {
	*cut
	disk
}

func (d cutDisk) Mkdir(dir string, mode fs.FileMode) error {
	return d.step("mkdir "+filepath.Base(dir), func() error { return d.disk.Mkdir(dir, mode) })
}

func (d cutDisk) MkdirAll(dir string, mode fs.FileMode) error {
	return d.step("mkdir all "+filepath.Base(dir), func() error { return d.disk.MkdirAll(dir, mode) })
}

func (d cutDisk) WriteFile(name string, b []byte) error {
	return d.step("write "+filepath.Base(name), func() error { return d.disk.WriteFile(name, b) })
}

func (d cutDisk) Replace(name string, b []byte) error {
	return d.step("replace "+filepath.Base(name), func() error { return d.disk.Replace(name, b) })
}

func (d cutDisk) Symlink(to, name string) error {
	return d.step("symlink", func() error { return d.disk.Symlink(to, name) })
}

func (d cutDisk) Mkfifo(name string) error {
	return d.step("mkfifo", func() error { return d.disk.Mkfifo(name) })
}

func (d cutDisk) Rename(from, to string) error {
	return d.step("rename", func() error { return d.disk.Rename(from, to) })
}

func (d cutDisk) RemoveTree(dir string) error {
	return d.step("remove "+filepath.Base(dir), func() error { return d.disk.RemoveTree(dir) })
}

// A world is what outlives a daemon: the shims and what they run.
type world struct {
	programs tasktest.Programs

	mu       sync.Mutex
	shims    map[string]*tasktest.Shim // by bundle; the last one
	all      []*tasktest.Shim
	failing  string // name of a step that fails for good
	cleaned  int
	startErr error
}

func newWorld() *world {
	return &world{programs: tasktest.DefaultPrograms(), shims: make(map[string]*tasktest.Shim)}
}

func (w *world) shim(dir string) *tasktest.Shim {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.shims[dir]
}

// living returns the shims that have not ended, and how many processes run
// that a shim has ever started.
func (w *world) living() (shims, processes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.all {
		select {
		case <-s.Ended():
		default:
			shims++
		}
		processes += s.Processes()
	}
	return shims, processes
}

// fakeRuntime is the runtime of a world, for one daemon.
type fakeRuntime struct {
	w *world
	*cut
}

func (f fakeRuntime) find(name string) (string, error) {
	if name == "io.containerd.runc.v2" {
		return "/fake/" + OwnShim, nil
	}
	if name == "io.containerd.other.v2" {
		return "/fake/containerd-shim-other-v2", nil
	}
	binary, err := binaryName(name)
	if err != nil {
		return "", err
	}
	return "", notInstalled(name, binary)
}

func shimProcess(s *tasktest.Shim) process { return process{Pid: int(s.Pid()), Birth: 1} }

func (f fakeRuntime) start(_ context.Context, l launch, born func(process) error) (task.ShimAddress, error) {
	var a task.ShimAddress
	var s *tasktest.Shim
	err := f.step("start", func() error {
		f.w.mu.Lock()
		defer f.w.mu.Unlock()
		if f.w.startErr != nil {
			return f.w.startErr
		}
		if old := f.w.shims[l.dir]; old != nil {
			select {
			case <-old.Ended():
			default:
				return errors.New("a shim of this id runs")
			}
		}
		s = tasktest.NewShim(f.w.programs)
		f.w.shims[l.dir] = s
		f.w.all = append(f.w.all, s)
		return nil
	})
	if err != nil {
		return a, err
	}
	if l.own() {
		if err := born(shimProcess(s)); err != nil {
			return a, err
		}
	}
	return task.ShimAddress{Version: 3, Address: "unix://" + l.dir, Protocol: "ttrpc"}, nil
}

func (f fakeRuntime) connect(_ context.Context, _ string, a task.ShimAddress) (task.Shim, error) {
	if err := f.ended(); err != nil {
		return nil, err
	}
	s := f.w.shim(a.Address[len("unix://"):])
	if s == nil {
		return nil, errdefs.ErrNotFound
	}
	c, err := s.Connect()
	if err != nil {
		return nil, err
	}
	return cutShim{c, f.cut}, nil
}

func (f fakeRuntime) clean(_ context.Context, l launch) (e task.Exit, err error) {
	err = f.step("clean", func() error {
		if _, err := os.Stat(l.dir); err != nil {
			return err // it is where the command runs
		}
		s := f.w.shim(l.dir)
		if s == nil {
			return errors.New("nothing to clean")
		}
		f.w.mu.Lock()
		f.w.cleaned++
		failing := f.w.failing == "clean"
		f.w.mu.Unlock()
		if failing {
			return errors.New("delete fails")
		}
		e, err = s.Clean()
		return err
	})
	return e, err
}

func (f fakeRuntime) byPid(pid int) *tasktest.Shim {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	for _, s := range f.w.all {
		if int(s.Pid()) == pid {
			return s
		}
	}
	return nil
}

func (f fakeRuntime) watch(p process) (<-chan struct{}, error) {
	if err := f.ended(); err != nil {
		return nil, err
	}
	s := f.byPid(p.Pid)
	if s == nil {
		return nil, errdefs.ErrNotFound
	}
	return s.Ended(), nil
}

func (f fakeRuntime) signal(p process, sig syscall.Signal) error {
	return f.step(sig.String(), func() error {
		s := f.byPid(p.Pid)
		switch {
		case s != nil && sig == syscall.SIGTERM:
			s.Shutdown(context.Background(), "")
		case s != nil:
			s.Die()
		}
		return nil
	})
}

func (f fakeRuntime) identify(pid int) (process, error) {
	if f.byPid(pid) == nil {
		return process{}, errdefs.ErrNotFound
	}
	return process{Pid: pid, Birth: 1}, nil
}

func (f fakeRuntime) strays(dir string) ([]process, error) {
	s := f.w.shim(dir)
	if s == nil {
		return nil, f.ended()
	}
	return []process{shimProcess(s)}, f.ended()
}

func (f fakeRuntime) close() {}

// cutShim is a connection until the cut.
type cutShim struct {
	task.Shim
	cut *cut
}

func (s cutShim) Create(ctx context.Context, r task.ShimCreate) (pid uint32, err error) {
	err = s.cut.step("shim create", func() error {
		pid, err = s.Shim.Create(ctx, r)
		return err
	})
	return pid, err
}

func (s cutShim) Start(ctx context.Context, id, exec string) (pid uint32, err error) {
	err = s.cut.step("shim start", func() error {
		pid, err = s.Shim.Start(ctx, id, exec)
		return err
	})
	return pid, err
}

func (s cutShim) Kill(ctx context.Context, id, exec string, signal uint32, all bool) error {
	return s.cut.step("shim kill", func() error { return s.Shim.Kill(ctx, id, exec, signal, all) })
}

func (s cutShim) Delete(ctx context.Context, id string) (e task.Exit, err error) {
	err = s.cut.step("shim delete", func() error {
		e, err = s.Shim.Delete(ctx, id)
		return err
	})
	return e, err
}

func (s cutShim) Shutdown(ctx context.Context, id string) error {
	return s.cut.step("shim shutdown", func() error { return s.Shim.Shutdown(ctx, id) })
}

func (s cutShim) Get(ctx context.Context, id, exec string) (task.Process, error) {
	if err := s.cut.ended(); err != nil {
		return task.Process{}, err
	}
	return s.Shim.Get(ctx, id, exec)
}

// A place is where a daemon keeps its things, and its world.
type place struct {
	cfg    Config
	w      *world
	told   func(string, runner.Event) (event.Event, error)
	mounts *activationtest.Memory

	namespaces namespace.Store
	gates      gate.Asker
}

func newPlace(t *testing.T) place {
	dir := t.TempDir()
	cfg := Default()
	cfg.Root, cfg.State = filepath.Join(dir, "root"), filepath.Join(dir, "state")
	return place{cfg: cfg, w: newWorld(), mounts: activationtest.NewMemory(nil)}
}

// A box is a bus that keeps what it is told.
type box struct {
	mu      sync.Mutex
	got     []event.Event
	refuses bool
}

func (b *box) refuse(refuses bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuses = refuses
}

func (b *box) Publish(_ context.Context, e event.Event) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refuses {
		return errdefs.ErrUnavailable
	}
	b.got = append(b.got, e)
	return nil
}

// told returns the ids of the events of a topic, in order; an event that was
// told twice has one id.
func (b *box) told(topic string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []string
	for _, e := range b.got {
		if e.Topic == topic && !slices.Contains(all, e.ID) {
			all = append(all, e.ID)
		}
	}
	return all
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// opened is a daemon of a place.
type opened struct {
	*Store
	events *box
	cut    *cut
	stop   context.CancelFunc
	works  sync.WaitGroup
}

// open starts a daemon, which ends with the test or with close.
func (p place) open(t *testing.T, c *cut) *opened {
	t.Helper()
	o, err := p.tryOpen(t, c)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return o
}

func (p place) tryOpen(t *testing.T, c *cut) (*opened, error) {
	o := &opened{events: &box{}, cut: c}
	log := testLog(t)
	if c.at > 0 {
		log = quiet()
	}
	s, err := open(p.cfg, Needs{Events: o.events, Told: p.told, Activations: cutMounts{p.mounts, c}, Namespaces: p.namespaces, Gates: p.gates, Log: log}, cutDisk{c, realDisk{}}, fakeRuntime{p.w, c})
	if err != nil {
		return nil, err
	}
	o.Store = s
	ctx, cancel := context.WithCancel(context.Background())
	o.stop = cancel
	o.works.Go(func() { s.Recover(ctx) })
	o.works.Go(func() { s.Publish(ctx) })
	t.Cleanup(func() { o.close(t) })
	return o, nil
}

func (o *opened) close(t *testing.T) {
	t.Helper()
	if o.stop == nil {
		return
	}
	o.stop()
	o.works.Wait()
	o.stop = nil
	if err := o.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

const sigkill = uint32(syscall.SIGKILL)

var one = namespace.Scope{Name: "one"}

func (o *opened) tasksOne() task.Service { return o.Tasks().In(one) }

func (o *opened) container(t *testing.T, id string, args ...string) {
	t.Helper()
	o.containerOf(t, id, tasktest.MemoryRuntime, args...)
}

func (o *opened) containerOf(t *testing.T, id, runtime string, args ...string) {
	t.Helper()
	spec := tasktest.Spec(args...)
	_, err := o.Containers().In(one).Create(t.Context(), container.Container{
		ID: id, Runtime: container.Runtime{Name: runtime}, Spec: &spec,
	})
	if err != nil {
		t.Fatalf("container %s: %v", id, err)
	}
}

// run makes a container and starts its task.
func (o *opened) run(t *testing.T, id string, args ...string) {
	t.Helper()
	o.container(t, id, args...)
	o.start(t, id)
}

func (o *opened) start(t *testing.T, id string) {
	t.Helper()
	if _, err := o.tasksOne().Create(t.Context(), task.CreateRequest{ContainerID: id}); err != nil {
		t.Fatalf("Create(%s): %v", id, err)
	}
	if _, err := o.tasksOne().Start(t.Context(), id, ""); err != nil {
		t.Fatalf("Start(%s): %v", id, err)
	}
}

func (o *opened) status(t *testing.T, id string) task.Status {
	t.Helper()
	p, err := o.tasksOne().Get(t.Context(), id, "")
	if err != nil {
		t.Fatalf("Get(%s): %v", id, err)
	}
	return p.Status
}

// eventually polls until what holds.
func eventually(t testing.TB, what string, holds func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-time.After(2 * time.Millisecond)
	}
}

// bundles returns what is in the directory of bundles, hidden or not.
func (p place) bundles(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(p.cfg.State, bundlesName, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	hidden, err := filepath.Glob(filepath.Join(p.cfg.State, bundlesName, "*", ".*"))
	if err != nil {
		t.Fatal(err)
	}
	work, err := filepath.Glob(filepath.Join(p.cfg.Root, bundlesName, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(all, hidden, work)
}

// empty waits until nothing is left of any task.
func (p place) empty(t *testing.T) {
	t.Helper()
	eventually(t, "nothing is left", func() error {
		if b := p.bundles(t); len(b) > 0 {
			return fmt.Errorf("bundles %v", b)
		}
		if shims, processes := p.w.living(); shims+processes > 0 {
			return fmt.Errorf("%d shims and %d processes", shims, processes)
		}
		for i, err := range p.mounts.In(one).List(t.Context()) {
			return fmt.Errorf("activation %s, %v", i.Name, err)
		}
		return nil
	})
}
