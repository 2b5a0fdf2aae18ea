package taskd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/container/containerrpc"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventrpc"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/runner"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/task/shimrpc"
	"github.com/gantryd/gantry/services/task/shimserve"
	"github.com/gantryd/gantry/services/task/taskrpc"
	"github.com/gantryd/gantry/services/task/tasktest"
	"github.com/gantryd/gantry/services/typed"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: runc makes real containers here")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("needs runc: apt-get install runc")
	}
}

// build builds our shim and the program that containers run, for one test.
func build(t testing.TB) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	for out, pkg := range map[string]string{OwnShim: "../cmd/" + OwnShim, "rootfs/bin/prog": "./testdata/prog"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, out), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", pkg, err, b)
		}
	}
	for _, name := range []string{"true", "false", "exit", "sleep", "ignore", "echo", "cat"} {
		if err := os.Symlink("prog", filepath.Join(dir, "rootfs/bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"proc", "dev"} {
		if err := os.Mkdir(filepath.Join(dir, "rootfs", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// A real is a place with real shims and containers.
type real struct {
	testing.TB
	dir    string
	cfg    Config
	needs  Needs
	events *box
	rootfs string
}

// newReal makes one, of what was built. Whatever is left when the test ends
// fails it.
func newReal(t testing.TB, built string) *real {
	t.Helper()
	dir, err := os.MkdirTemp("", "taskd") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	r := &real{TB: t, dir: dir, events: &box{}, rootfs: filepath.Join(built, "rootfs")}
	r.cfg = Default()
	r.cfg.Root, r.cfg.State = filepath.Join(dir, "root"), filepath.Join(dir, "state")
	r.cfg.Address = filepath.Join(dir, "gantry.sock")
	r.cfg.ShimSockets = filepath.Join(dir, "s")
	r.needs = Needs{
		Shims:  shimrpc.Protocol{},
		Events: r.events,
		Told: func(ns string, e runner.Event) (event.Event, error) {
			envelope, err := shimserve.Envelope(ns, e)
			if err != nil {
				return event.Event{}, err
			}
			told, err := eventrpc.Forwarded(envelope)
			return told.Stamp(e.Time, suite.Eventbus), err
		},
		Executable: filepath.Join(built, "taskd"),
		Environ:    os.Environ(),
		Log:        quiet(),
	}
	t.Cleanup(r.check)
	r.serveEvents()
	return r
}

// serveEvents takes the events of shims.
func (r *real) serveEvents() {
	lis, err := net.Listen("unix", suite.ShimSocket(r.cfg.Address))
	if err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		eventrpc.ServeShims(ctx, lis, r.events)
	}()
	r.Cleanup(func() { cancel(); <-done })
}

// empty waits until nothing is left of any task.
func (r *real) empty() {
	deadline := time.Now().Add(20 * time.Second)
	for {
		left := r.left()
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			r.Errorf("left behind: %q", left)
			return
		}
		<-time.After(5 * time.Millisecond)
	}
}

// check removes what the test has left.
func (r *real) check() {
	for _, pid := range r.pids() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	if err := removeTree(r.dir); err != nil {
		r.Error(err)
	}
}

// left returns processes, mounts and bundles.
func (r *real) left() []string {
	var left []string
	for _, pid := range r.pids() {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		left = append(left, string(bytes.ReplaceAll(b, []byte{0}, []byte(" "))))
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, r.dir) {
			left = append(left, line)
		}
	}
	for _, dir := range []string{r.cfg.Root, r.cfg.State} {
		filepath.WalkDir(filepath.Join(dir, bundlesName), func(path string, _ fs.DirEntry, err error) error {
			if err == nil && strings.Count(strings.TrimPrefix(path, dir), "/") == 3 {
				left = append(left, path)
			}
			return nil
		})
	}
	return left
}

// pids returns the processes that have our directory in their arguments.
func (r *real) pids() []int {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var pids []int
	for _, name := range all {
		b, _ := os.ReadFile(name)
		if bytes.Contains(b, []byte(r.dir+"/")) {
			var pid int
			fmt.Sscanf(name, "/proc/%d/", &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

// open starts a daemon, which ends with the test, after all its tasks.
func (r *real) open() *Store {
	r.Helper()
	s, end := r.openNow()
	r.Cleanup(func() {
		r.endAll(s)
		r.empty()
		end()
	})
	return s
}

// openNow starts a daemon and returns how to end it.
func (r *real) openNow() (s *Store, end func()) {
	r.Helper()
	s, err := Open(r.cfg, r.needs)
	if err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var works sync.WaitGroup
	works.Go(func() { s.Recover(ctx) })
	works.Go(func() { s.Publish(ctx) })
	return s, func() {
		cancel()
		works.Wait()
		if err := s.Close(); err != nil {
			r.Errorf("Close: %v", err)
		}
	}
}

// endAll ends every task that the test has left.
func (r *real) endAll(s *Store) {
	for _, ns := range []string{"one", "two"} {
		tasks := s.Tasks().In(namespace.Scope{Name: ns})
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		all, err := tasks.List(ctx)
		if err != nil {
			r.Error(err)
		}
		for _, p := range all {
			tasks.Kill(ctx, p.ContainerID, "", sigkill, true)
			if _, err := tasks.Wait(ctx, p.ContainerID, ""); err != nil {
				r.Errorf("wait for %s: %v", p.ContainerID, err)
			}
			if _, err := tasks.Delete(ctx, p.ContainerID); err != nil {
				r.Errorf("delete %s: %v", p.ContainerID, err)
			}
		}
	}
}

// spec runs a program in the root file system of all.
func (r *real) spec(args ...string) typed.Value {
	args = slices.Clone(args)
	args[0] = "/bin/" + args[0]
	b, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2",
		"process":    r.process(args),
		"root":       map[string]any{"path": r.rootfs, "readonly": true},
		"mounts": []any{
			map[string]any{"destination": "/proc", "type": "proc", "source": "proc"},
			map[string]any{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"mode=755"}},
		},
		"linux": map[string]any{
			"cgroupsPath": "/gantry-" + filepath.Base(r.dir) + "-" + newInstance(),
			"namespaces": []any{
				map[string]any{"type": "pid"}, map[string]any{"type": "mount"},
				map[string]any{"type": "ipc"}, map[string]any{"type": "uts"},
			},
		},
	})
	if err != nil {
		r.Fatal(err)
	}
	return typed.Value{URL: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Data: b}
}

func (r *real) process(args []string) map[string]any {
	return map[string]any{"args": args, "cwd": "/", "user": map[string]any{"uid": 0, "gid": 0}}
}

func (r *real) execSpec(args ...string) typed.Value {
	args = slices.Clone(args)
	args[0] = "/bin/" + args[0]
	b, err := json.Marshal(r.process(args))
	if err != nil {
		r.Fatal(err)
	}
	return typed.Value{URL: "types.containerd.io/opencontainers/runtime-spec/1/Process", Data: b}
}

// options keep runc's state with the test.
func (r *real) options() *typed.Value {
	b, err := proto.Marshal(&runcoptions.Options{Root: filepath.Join(r.dir, "runc")})
	if err != nil {
		r.Fatal(err)
	}
	return &typed.Value{URL: "containerd.runc.v1.Options", Data: b}
}

// withOptions adds our options to every container.
type withOptions struct {
	container.Stores
	options *typed.Value
}

func (w withOptions) In(s namespace.Scope) container.Store {
	return storeWithOptions{w.Stores.In(s), w.options}
}

type storeWithOptions struct {
	container.Store
	options *typed.Value
}

func (s storeWithOptions) Create(ctx context.Context, c container.Container) (container.Container, error) {
	c.Runtime.Options = s.options
	return s.Store.Create(ctx, c)
}

func (r *real) node(s *Store) tasktest.Node {
	return tasktest.Node{
		Tasks:      s.Tasks(),
		Containers: withOptions{s.Containers(), r.options()},
		Spec:       r.spec,
		Process:    r.execSpec,
	}
}

func TestTasksWithOurShim(t *testing.T) {
	built := build(t)
	tasktest.Run(t, func(t *testing.T) tasktest.Node {
		r := newReal(t, built)
		return r.node(r.open())
	})
}

// TestContainerdsShim takes a task through its life with containerd's own shim,
// across a restart.
func TestContainerdsShim(t *testing.T) {
	needRoot(t)
	if _, err := exec.LookPath("containerd-shim-runc-v2"); err != nil {
		t.Skip("needs containerd-shim-runc-v2 in $PATH")
	}
	r := newReal(t, build(t))
	r.cfg.Runtimes = nil
	first, closeFirst := r.openNow()
	n := r.node(first)
	r.run(n, "c1", nil, "sleep")
	r.run(n, "dies", nil, "sleep")
	closeFirst()

	s := r.open()
	n = r.node(s)
	tasks := n.Tasks.In(one)
	if p, err := tasks.Get(t.Context(), "c1", ""); err != nil || p.Status != task.Running {
		t.Errorf("Get: %+v, %v", p, err)
	}
	_, err := tasks.Delete(t.Context(), "c1")
	wantKind(t, "Delete of the running", err, errdefs.ErrFailedPrecondition)
	if err := tasks.Exec(t.Context(), task.ExecRequest{ContainerID: "c1", ExecID: "e", Spec: n.Process("exit", "3")}); err != nil {
		t.Error(err)
	}
	if _, err := tasks.Start(t.Context(), "c1", "e"); err != nil {
		t.Error(err)
	}
	if e, err := tasks.Wait(t.Context(), "c1", "e"); err != nil || e.Status != 3 {
		t.Errorf("Wait of the exec: %+v, %v", e, err)
	}
	if e, err := tasks.DeleteProcess(t.Context(), "c1", "e"); err != nil || e.Status != 3 {
		t.Errorf("DeleteProcess: %+v, %v", e, err)
	}
	if err := tasks.Kill(t.Context(), "c1", "", sigkill, false); err != nil {
		t.Error(err)
	}
	if e, err := tasks.Wait(t.Context(), "c1", ""); err != nil || e.Status != 137 {
		t.Errorf("Wait: %+v, %v", e, err)
	}
	err = tasks.Exec(t.Context(), task.ExecRequest{ContainerID: "c1", ExecID: "f", Spec: n.Process("true")})
	wantKind(t, "Exec in the stopped", err, errdefs.ErrFailedPrecondition)
	if e, err := tasks.Delete(t.Context(), "c1"); err != nil || e.Status != 137 {
		t.Errorf("Delete: %+v, %v", e, err)
	}

	l, err := s.find(t.Context(), "one", "dies")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.run.signal(l.record().Shim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e, err := tasks.Wait(t.Context(), "dies", ""); err != nil || e.Status != 137 {
		t.Errorf("Wait of the one whose shim died: %+v, %v", e, err)
	}
}

// run makes a container and starts its task.
func (r *real) run(n tasktest.Node, id string, rootfs []mount.Mount, args ...string) {
	r.Helper()
	spec := n.Spec(args...)
	_, err := n.Containers.In(one).Create(r.Context(), container.Container{
		ID: id, Runtime: container.Runtime{Name: tasktest.MemoryRuntime}, Spec: &spec,
	})
	if err != nil {
		r.Fatal(err)
	}
	s := n.Tasks.In(one)
	if _, err := s.Create(r.Context(), task.CreateRequest{ContainerID: id, Rootfs: rootfs}); err != nil {
		r.Fatal(err)
	}
	if _, err := s.Start(r.Context(), id, ""); err != nil {
		r.Fatal(err)
	}
}

func TestEndOfARealShimIsToldByTaskd(t *testing.T) {
	r := newReal(t, build(t))
	s := r.open()
	n := r.node(s)
	r.run(n, "c1", nil, "sleep")
	l, err := s.find(t.Context(), "one", "c1")
	if err != nil {
		t.Fatal(err)
	}
	pid := l.record().Pid
	if err := s.run.signal(l.record().Shim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	e, err := n.Tasks.In(one).Wait(t.Context(), "c1", "")
	if err != nil || e.Status != 137 || e.Pid != pid {
		t.Errorf("Wait: %+v, %v; want status 137 of pid %d", e, err, pid)
	}
	eventually(t, "the container's process has ended", func() error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err == nil && !bytes.Contains(b, []byte(") Z ")) { // whoever is its parent now may take his time
			return fmt.Errorf("%s", b)
		}
		return nil
	})
	eventually(t, "the end is told", func() error {
		if len(r.events.told("/tasks/exit")) == 0 || len(r.events.told("/tasks/delete")) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
}

func TestStoppedShimHoldsUpNobodyElse(t *testing.T) {
	r := newReal(t, build(t))
	s := r.open()
	n := r.node(s)
	r.run(n, "stopped", nil, "sleep")
	r.run(n, "well", nil, "sleep")
	l, err := s.find(t.Context(), "one", "stopped")
	if err != nil {
		t.Fatal(err)
	}
	shim := l.record().Shim
	if err := s.run.signal(shim, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer s.run.signal(shim, syscall.SIGCONT)
	eventually(t, "it stops", func() error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", shim.Pid))
		if err == nil && !bytes.Contains(b, []byte(") T ")) {
			err = fmt.Errorf("%s", b)
		}
		return err
	})
	tasks := n.Tasks.In(one)
	var asking sync.WaitGroup
	for range 50 {
		asking.Go(func() {
			if p, err := tasks.Get(t.Context(), "stopped", ""); err != nil || p.Status != task.Unknown {
				t.Errorf("Get: %+v, %v; want unknown", p, err)
			}
		})
	}
	start := time.Now()
	for range 10 {
		if p, err := tasks.Get(t.Context(), "well", ""); err != nil || p.Status != task.Running {
			t.Errorf("Get: %+v, %v", p, err)
		}
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("the other task took %v to ask", took)
	}
	asking.Wait()
	if err := s.run.signal(shim, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it answers again", func() error {
		if p, err := tasks.Get(t.Context(), "stopped", ""); err != nil || p.Status != task.Running {
			return fmt.Errorf("%+v, %v", p, err)
		}
		return nil
	})
}

// What is mounted in a bundle is another's, also when the shim did not remove
// it.
func TestRemovalNeverGoesIntoAMount(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	theirs := filepath.Join(dir, "theirs")
	bundle := filepath.Join(dir, "bundle")
	for _, d := range []string{filepath.Join(theirs, "deep"), filepath.Join(bundle, "rootfs"), filepath.Join(bundle, "x", "y")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	canary := filepath.Join(theirs, "deep", "canary")
	if err := os.WriteFile(canary, []byte("sings"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(theirs, filepath.Join(bundle, "work")); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"rootfs", "rootfs", "x/y"} {
		if err := unix.Mount(theirs, filepath.Join(bundle, to), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(bundle, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(canary, file, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(bundle); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(bundle); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the bundle: %v", err)
	}
	if b, err := os.ReadFile(canary); err != nil || string(b) != "sings" {
		t.Errorf("the canary: %q, %v", b, err)
	}
}

func TestRootfsIsMountedAndLeft(t *testing.T) {
	r := newReal(t, build(t))
	n := r.node(r.open())
	n.Spec = func(args ...string) typed.Value {
		v := r.spec(args...)
		v.Data = bytes.ReplaceAll(v.Data, []byte(r.rootfs), []byte("rootfs"))
		return v
	}
	upper, work := filepath.Join(r.dir, "upper"), filepath.Join(r.dir, "ovl")
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.run(n, "c1", []mount.Mount{{
		Type: "overlay", Source: "overlay",
		Options: []string{"lowerdir=" + r.rootfs, "upperdir=" + upper, "workdir=" + work},
	}}, "exit", "5")
	s := n.Tasks.In(one)
	if e, err := s.Wait(t.Context(), "c1", ""); err != nil || e.Status != 5 {
		t.Errorf("Wait: %+v, %v", e, err)
	}
	if _, err := s.Delete(t.Context(), "c1"); err != nil {
		t.Errorf("Delete: %v", err)
	}
	if _, err := os.Stat(filepath.Join(r.rootfs, "bin/prog")); err != nil {
		t.Error(err)
	}
}

// TestDaemonForKillTest is no test: it is the daemon that
// TestRealTasksSurviveKill kills.
func TestDaemonForKillTest(t *testing.T) {
	conf := os.Getenv("TASKD_TEST_DAEMON")
	if conf == "" {
		t.Skip("a part of another test")
	}
	var cfg Config
	if err := json.Unmarshal([]byte(conf), &cfg); err != nil {
		t.Fatal(err)
	}
	s, err := Open(cfg, Needs{
		Shims: shimrpc.Protocol{}, Events: &box{}, Executable: os.Getenv("TASKD_TEST_EXECUTABLE"),
		Environ: os.Environ(), Log: quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	go s.Recover(t.Context())
	go s.Publish(t.Context())
	srv := rpc.NewServer(suite.Taskd, quiet())
	taskrpc.Register(srv, s.Tasks())
	containerrpc.Register(srv, s.Containers())
	lis, err := net.Listen("unix", filepath.Join(filepath.Dir(cfg.Root), "taskd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv.Serve(lis) // until it is killed
}

// daemonProcess starts a daemon as a process and returns how to kill it.
func (r *real) daemonProcess() (kill func()) {
	r.Helper()
	conf, err := json.Marshal(r.cfg)
	if err != nil {
		r.Fatal(err)
	}
	socket := filepath.Join(r.dir, "taskd.sock")
	os.Remove(socket)
	cmd := exec.Command(os.Args[0], "-test.run=^TestDaemonForKillTest$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), "TASKD_TEST_DAEMON="+string(conf), "TASKD_TEST_EXECUTABLE="+r.needs.Executable)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	killed := sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if r.Failed() {
			r.Logf("the daemon said: %s", out.String())
		}
	})
	r.Cleanup(killed)
	eventually(r, "the daemon serves", func() error {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err
	})
	return killed
}

// TestRealTasksSurviveKill kills the daemon, as a process, while containers
// run, while one ends, and in the middle of whatever clients are doing.
func TestRealTasksSurviveKill(t *testing.T) {
	r := newReal(t, build(t))
	kill := r.daemonProcess()
	conn, err := rpc.Dial(filepath.Join(r.dir, "taskd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	n := r.node(&Store{})
	n.Tasks, n.Containers = taskrpc.NewClient(conn), withOptions{containerrpc.NewClient(conn), r.options()}
	s := n.Tasks.In(one)

	r.run(n, "witness", nil, "sleep")
	r.run(n, "ends", nil, "sleep")
	before, err := s.Get(t.Context(), "witness", "")
	if err != nil {
		t.Fatal(err)
	}
	ending, err := s.Get(t.Context(), "ends", "")
	if err != nil {
		t.Fatal(err)
	}

	kill()
	if err := syscall.Kill(int(ending.Pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	kill = r.daemonProcess()
	if e, err := s.Wait(t.Context(), "ends", ""); err != nil || e.Status != 137 {
		t.Errorf("what ended while the daemon was away: %+v, %v", e, err)
	}
	if e, err := s.Delete(t.Context(), "ends"); err != nil || e.Status != 137 {
		t.Errorf("Delete: %+v, %v", e, err)
	}

	// Lives, killed in the middle of them.
	for round := range 6 {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		var lives sync.WaitGroup
		for i := range 3 {
			id := fmt.Sprintf("r%d-%d", round, i)
			spec := n.Spec("exit", "3")
			_, err := n.Containers.In(one).Create(ctx, container.Container{
				ID: id, Runtime: container.Runtime{Name: tasktest.MemoryRuntime}, Spec: &spec,
			})
			if err != nil {
				t.Fatal(err)
			}
			lives.Go(func() {
				if err := liveThroughKills(ctx, s, id, 3); err != nil {
					t.Errorf("%s: %v", id, err)
				}
			})
		}
		<-time.After(time.Duration(10+17*round) * time.Millisecond)
		kill()
		kill = r.daemonProcess()
		lives.Wait()
		cancel()
	}

	after, err := s.Get(t.Context(), "witness", "")
	if err != nil || after != before {
		t.Errorf("the witness was %+v and is %+v, %v", before, after, err)
	}
	if err := s.Kill(t.Context(), "witness", "", sigkill, false); err != nil {
		t.Error(err)
	}
	if e, err := s.Wait(t.Context(), "witness", ""); err != nil || e.Status != 137 {
		t.Errorf("Wait: %+v, %v", e, err)
	}
	if _, err := s.Delete(t.Context(), "witness"); err != nil {
		t.Error(err)
	}
	all, err := s.List(t.Context())
	if err != nil || len(all) > 0 {
		t.Errorf("List: %+v, %v", all, err)
	}
	r.empty()
}

// liveThroughKills takes a task to its end as a patient client does: a call
// that the daemon did not live to answer is made again, and what the first one
// did is accepted.
func liveThroughKills(ctx context.Context, s task.Service, id string, want uint32) error {
	again := func(call func() error, fine error) error {
		for {
			err := call()
			if err == nil || fine != nil && errors.Is(err, fine) || !errors.Is(err, errdefs.ErrUnavailable) || ctx.Err() != nil {
				if fine != nil && errors.Is(err, fine) {
					return nil
				}
				return err
			}
			<-time.After(5 * time.Millisecond)
		}
	}
	err := again(func() error {
		_, err := s.Create(ctx, task.CreateRequest{ContainerID: id})
		return err
	}, errdefs.ErrAlreadyExists)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if err = again(func() error {
		_, err := s.Start(ctx, id, "")
		return err
	}, errdefs.ErrFailedPrecondition); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	var e task.Exit
	if err = again(func() (err error) {
		e, err = s.Wait(ctx, id, "")
		return err
	}, nil); err != nil || e.Status != want {
		return fmt.Errorf("wait: %+v, %w", e, err)
	}
	if err = again(func() error {
		_, err := s.Delete(ctx, id)
		return err
	}, errdefs.ErrNotFound); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}
