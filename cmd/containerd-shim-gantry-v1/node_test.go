package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskpb "github.com/containerd/containerd/api/runtime/task/v2"
	eventspb "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

const (
	namespace = "test"
	patience  = 20 * time.Second // for what has to happen
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

// build builds the shim, from what the tests test, and a root file system with
// the program that containers run.
func build(t testing.TB) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	for _, d := range []string{"proc", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, "rootfs", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	goBuild := func(out, pkg string, env, flags []string) {
		cmd := exec.Command("go", append(append([]string{"build", "-o", filepath.Join(dir, out)}, flags...), pkg)...)
		cmd.Env = append(os.Environ(), env...)
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", pkg, err, b)
		}
	}
	goBuild("containerd-shim-gantry-v1", ".", nil, raceFlags)
	goBuild("rootfs/probe", "../../shim/testdata/probe", []string{"CGO_ENABLED=0"}, nil) // static
	return dir
}

// A node is a place for shims, and the daemon that hears of their events.
type node struct {
	testing.TB
	dir, programs string
	address       string // of the public socket, which nobody serves here
	events        *collector
}

func newNode(t testing.TB, programs string) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "shim") // t.TempDir's names are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	n := &node{TB: t, dir: dir, programs: programs, address: filepath.Join(dir, "gantry.sock")}
	t.Cleanup(n.check)
	n.events = collect(t, n.address+".ttrpc")
	return n
}

// check fails the test if anything is left on the node.
func (n *node) check() {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		n.Error(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, n.dir) {
			n.Error("mount left:", line)
			unix.Unmount(strings.Fields(line)[4], unix.MNT_DETACH)
		}
	}
	eventually(n, "no process left", func() bool { return !runs(n.dir) })
	for _, pattern := range []string{"/sys/fs/cgroup/gantry-" + filepath.Base(n.dir) + "-*", "/sys/fs/cgroup/*/gantry-" + filepath.Base(n.dir) + "-*", n.dir + "/runc/*/*", n.dir + "/chosen/*/*"} {
		left, _ := filepath.Glob(pattern)
		for _, l := range left {
			n.Error("left:", l)
		}
	}
	races, _ := filepath.Glob(filepath.Join(n.dir, "race*"))
	for _, r := range races {
		b, _ := os.ReadFile(r)
		n.Errorf("%s", b)
	}
	os.RemoveAll(n.dir)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Errorf("%s: not after %v", what, patience)
			return
		}
		<-time.After(10 * time.Millisecond)
	}
}

// A collector is the daemon that takes events.
type collector struct {
	mu     sync.Mutex
	topics []string // with the container, and the exec if there is one
	all    []*types.Envelope
	srv    *ttrpc.Server
}

func collect(t testing.TB, path string) *collector {
	t.Helper()
	c := &collector{}
	c.listen(t, path)
	t.Cleanup(func() { c.srv.Close() })
	return c
}

func (c *collector) listen(t testing.TB, path string) {
	t.Helper()
	os.Remove(path)
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if c.srv, err = ttrpc.NewServer(); err != nil {
		t.Fatal(err)
	}
	eventspb.RegisterTTRPCEventsService(c.srv, c)
	go c.srv.Serve(context.Background(), lis)
}

func (c *collector) Forward(_ context.Context, r *eventspb.ForwardRequest) (*emptypb.Empty, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, r.Envelope)
	c.topics = append(c.topics, r.Envelope.Topic)
	return &emptypb.Empty{}, nil
}

func (c *collector) seen() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.topics...)
}

// want waits for exactly these topics, in this order.
func (c *collector) want(t testing.TB, topics ...string) {
	t.Helper()
	eventually(t, "events "+strings.Join(topics, " "), func() bool { return len(c.seen()) >= len(topics) })
	if got, want := strings.Join(c.seen(), " "), strings.Join(topics, " "); got != want {
		t.Errorf("events are %s, want %s", got, want)
	}
}

// A task is a bundle, and the shim that serves it.
type testTask struct {
	*node
	id, bundle string
	spec       *specs.Spec
	rootfs     []*types.Mount
	options    *runcoptions.Options

	cmd  *exec.Cmd
	conn net.Conn
	shim taskpb.TTRPCTaskService
	dead chan struct{} // closed when the shim has ended
}

// task makes a bundle whose container runs probe with the arguments.
func (n *node) task(id string, args ...string) *testTask {
	n.Helper()
	k := &testTask{
		node: n, id: id,
		bundle:  filepath.Join(n.dir, "bundle", id),
		options: &runcoptions.Options{Root: filepath.Join(n.dir, "chosen")},
		spec: &specs.Spec{
			Version: "1.0.2",
			Root:    &specs.Root{Path: "rootfs"},
			Process: &specs.Process{Args: append([]string{"/probe"}, args...), Cwd: "/", Env: []string{"PATH=/"}},
			Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
			Linux: &specs.Linux{
				CgroupsPath: "/gantry-" + filepath.Base(n.dir) + "-" + id,
				Namespaces: []specs.LinuxNamespace{
					{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				},
			},
		},
	}
	for _, d := range []string{"rootfs", "upper", "work"} {
		if err := os.MkdirAll(filepath.Join(k.bundle, d), 0o700); err != nil {
			n.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(k.bundle, "log"), 0o600); err != nil {
		n.Fatal(err)
	}
	k.rootfs = []*types.Mount{{
		Type: "overlay", Source: "overlay",
		Options: []string{
			"lowerdir=" + filepath.Join(n.programs, "rootfs"),
			"upperdir=" + filepath.Join(k.bundle, "upper"),
			"workdir=" + filepath.Join(k.bundle, "work"),
		},
	}}
	return k
}

func (k *testTask) flags(action string) []string {
	return []string{"-namespace", namespace, "-address", k.address, "-publish-binary", "/bin/true", "-id", k.id, action}
}

// params are what a daemon writes to the shim's stdin.
func (k *testTask) params() []byte {
	k.Helper()
	options, err := proto.Marshal(k.options)
	if err != nil {
		k.Fatal(err)
	}
	socketDir := filepath.Join(k.dir, "s")
	b, err := proto.Marshal(&bootstrap.BootstrapParams{
		InstanceID:             k.id,
		Namespace:              namespace,
		ContainerdTtrpcAddress: k.address + ".ttrpc",
		SocketDir:              &socketDir,
		Extensions:             []*bootstrap.Extension{{Value: &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: options}}},
	})
	if err != nil {
		k.Fatal(err)
	}
	return b
}

func (k *testTask) command(action string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(k.programs, "containerd-shim-gantry-v1"), k.flags(action)...)
	cmd.Dir = k.bundle
	cmd.Stdin = bytes.NewReader(k.params())
	cmd.Env = append(os.Environ(), "TTRPC_ADDRESS="+k.address+".ttrpc", "GOMAXPROCS=2", "GORACE=halt_on_error=1 atexit_sleep_ms=0 log_path="+filepath.Join(k.dir, "race"))
	return cmd
}

// serve starts the shim as taskd does.
func (k *testTask) serve() *testTask {
	k.Helper()
	spec, err := json.Marshal(k.spec)
	if err != nil {
		k.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(k.bundle, "config.json"), spec, 0o600); err != nil {
		k.Fatal(err)
	}
	k.cmd = k.command("serve")
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		k.Fatal(err)
	}
	if err := k.cmd.Start(); err != nil {
		k.Fatal(err)
	}
	line, err := io.ReadAll(out)
	if err != nil {
		k.Fatal(err)
	}
	var answer struct {
		Version           int
		Address, Protocol string
	}
	if err := json.Unmarshal(line, &answer); err != nil || answer.Version != 3 || answer.Protocol != "ttrpc" {
		k.Fatalf("serve printed %q: %v", line, err)
	}
	k.dead = make(chan struct{})
	go func() {
		k.cmd.Wait()
		close(k.dead)
	}()
	k.Cleanup(k.stop)
	k.dial(strings.TrimPrefix(answer.Address, "unix://"))
	return k
}

func (k *testTask) dial(path string) {
	k.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		k.Fatal(err)
	}
	k.conn = conn
	k.shim = taskpb.NewTTRPCTaskClient(ttrpc.NewClient(conn))
}

// stop ends what a test that failed has left.
func (k *testTask) stop() {
	select {
	case <-k.dead:
		return
	default:
	}
	k.cmd.Process.Kill()
	<-k.dead
	if out, err := k.command("delete").CombinedOutput(); err != nil {
		k.Errorf("delete: %v: %s", err, out)
	}
}

func (k *testTask) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	k.Cleanup(cancel)
	return ctx
}

// native makes of a call's error what the client of the shim makes of it.
func native(err error) error { return errgrpc.ToNative(err) }

func (k *testTask) create(io streams) (uint32, error) {
	r, err := k.shim.Create(k.ctx(), &taskpb.CreateTaskRequest{
		ID: k.id, Bundle: k.bundle, Rootfs: k.rootfs,
		Stdin: io.stdin, Stdout: io.stdout, Stderr: io.stderr, Terminal: io.terminal,
	})
	return r.GetPid(), native(err)
}

func (k *testTask) mustCreate(io streams) uint32 {
	k.Helper()
	pid, err := k.create(io)
	if err != nil {
		k.Fatalf("create: %v", err)
	}
	return pid
}

func (k *testTask) mustStart(exec string) uint32 {
	k.Helper()
	r, err := k.shim.Start(k.ctx(), &taskpb.StartRequest{ID: k.id, ExecID: exec})
	if err != nil {
		k.Fatalf("start %q: %v", exec, err)
	}
	return r.Pid
}

func (k *testTask) mustWait(exec string) uint32 {
	k.Helper()
	r, err := k.shim.Wait(k.ctx(), &taskpb.WaitRequest{ID: k.id, ExecID: exec})
	if err != nil {
		k.Fatalf("wait %q: %v", exec, err)
	}
	return r.ExitStatus
}

func (k *testTask) mustDelete(exec string) *taskpb.DeleteResponse {
	k.Helper()
	r, err := k.shim.Delete(k.ctx(), &taskpb.DeleteRequest{ID: k.id, ExecID: exec})
	if err != nil {
		k.Fatalf("delete %q: %v", exec, err)
	}
	return r
}

func (k *testTask) kill(exec string, sig syscall.Signal, all bool) error {
	_, err := k.shim.Kill(k.ctx(), &taskpb.KillRequest{ID: k.id, ExecID: exec, Signal: uint32(sig), All: all})
	return native(err)
}

// exec adds a process that runs probe with the arguments.
func (k *testTask) exec(id string, io streams, args ...string) error {
	p, err := json.Marshal(specs.Process{Args: append([]string{"/probe"}, args...), Cwd: "/", Env: []string{"PATH=/"}})
	if err != nil {
		k.Fatal(err)
	}
	_, err = k.shim.Exec(k.ctx(), &taskpb.ExecProcessRequest{
		ID: k.id, ExecID: id,
		Spec:  &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: p},
		Stdin: io.stdin, Stdout: io.stdout, Stderr: io.stderr, Terminal: io.terminal,
	})
	return native(err)
}

// shutdown ends the shim as a daemon does after the last delete.
func (k *testTask) shutdown() {
	k.Helper()
	if _, err := k.shim.Shutdown(k.ctx(), &taskpb.ShutdownRequest{ID: k.id}); err != nil {
		k.Fatalf("shutdown: %v", err)
	}
	k.conn.Close()
	select {
	case <-k.dead:
	case <-time.After(patience):
		k.Fatal("the shim lives on after shutdown")
	}
}

// Streams are FIFOs and who reads them.
type streams struct {
	stdin, stdout, stderr string
	terminal              bool
}

// fifo makes a FIFO.
func (n *node) fifo(name string) string {
	n.Helper()
	path := filepath.Join(n.dir, "fifo-"+name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		n.Fatal(err)
	}
	return path
}

// read reads a FIFO to its end; the result is a function that waits for that.
func (n *node) read(path string) func() string {
	n.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0) // for a moment, so that nobody waits
	if err != nil {
		n.Fatal(err)
	}
	r, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		n.Fatal(err)
	}
	got := make(chan string, 1)
	go func() {
		defer r.Close()
		// The writer that we are goes when the first byte is here, or the shim
		// has opened its end by then and it does not matter.
		b, _ := io.ReadAll(r)
		got <- string(b)
	}()
	var once sync.Once
	return func() string {
		n.Helper()
		once.Do(func() { f.Close() })
		select {
		case s := <-got:
			return s
		case <-time.After(patience):
			n.Fatalf("%s does not end", path)
			return ""
		}
	}
}

func (k *testTask) fdCount() int {
	k.Helper()
	names, err := os.ReadDir("/proc/" + strconv.Itoa(k.cmd.Process.Pid) + "/fd")
	if err != nil {
		k.Fatal(err)
	}
	return len(names)
}

func removeAll(t testing.TB, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}

func wantKind(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: error is %v, want %v", what, got, want)
	}
}

func (k *testTask) state(exec string) *taskpb.StateResponse {
	k.Helper()
	r, err := k.shim.State(k.ctx(), &taskpb.StateRequest{ID: k.id, ExecID: exec})
	if err != nil {
		k.Fatalf("state %q: %v", exec, err)
	}
	return r
}

func (k *testTask) pids() []uint32 {
	k.Helper()
	r, err := k.shim.Pids(k.ctx(), &taskpb.PidsRequest{ID: k.id})
	if err != nil {
		k.Fatalf("pids: %v", err)
	}
	var pids []uint32
	for _, p := range r.Processes {
		pids = append(pids, p.Pid)
	}
	return pids
}

func (k *testTask) resize(exec string, width, height uint32) {
	k.Helper()
	if _, err := k.shim.ResizePty(k.ctx(), &taskpb.ResizePtyRequest{ID: k.id, ExecID: exec, Width: width, Height: height}); err != nil {
		k.Errorf("resize: %v", err)
	}
}

func (k *testTask) redial() net.Conn {
	k.Helper()
	conn, err := net.Dial("unix", k.conn.RemoteAddr().String())
	if err != nil {
		k.Fatal(err)
	}
	k.Cleanup(func() { conn.Close() })
	return conn
}

// end kills what runs, deletes the task and ends the shim.
func (k *testTask) end() {
	k.Helper()
	k.kill("", syscall.SIGKILL, false)
	k.mustWait("")
	k.mustDelete("")
	k.shutdown()
}

// runDelete runs the delete action.
func (k *testTask) runDelete() *taskpb.DeleteResponse {
	k.Helper()
	out, err := k.command("delete").Output()
	var r taskpb.DeleteResponse
	if err != nil || proto.Unmarshal(out, &r) != nil {
		k.Fatalf("delete printed %q: %v", out, err)
	}
	return &r
}

// runs reports whether there is a process, but this one, with text in its
// arguments.
func runs(text string) bool {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		b, _ := os.ReadFile(file)
		if file != fmt.Sprintf("/proc/%d/cmdline", os.Getpid()) && bytes.Contains(bytes.ReplaceAll(b, []byte{0}, []byte{' '}), []byte(text)) {
			return true
		}
	}
	return false
}
