package shimserve

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskpb "github.com/containerd/containerd/api/runtime/task/v2"
	eventspb "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/runner"
	"github.com/gantryd/gantry/services/task"
)

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func runcAny(t testing.TB, prefix string) *anypb.Any {
	return &anypb.Any{TypeUrl: prefix + optionsName, Value: marshal(t, &runcoptions.Options{
		BinaryName: "crun", Root: "/r", SystemdCgroup: true, NoPivotRoot: true, NoNewKeyring: true, IoUid: 1, IoGid: 2, ShimCgroup: "/c",
	})}
}

func TestStartIsReadInEveryForm(t *testing.T) {
	options := runner.Options{Binary: "crun", Root: "/r", SystemdCgroup: true, NoPivotRoot: true, NoNewKeyring: true, IOUID: 1, IOGID: 2}
	dir := "/s"
	params := &bootstrap.BootstrapParams{
		InstanceID: "i", Namespace: "n", ContainerdTtrpcAddress: "/e", SocketDir: &dir,
		LogLevel: bootstrap.LogLevel_LOG_LEVEL_DEBUG,
		Extensions: []*bootstrap.Extension{
			nil, {}, {Value: &anypb.Any{TypeUrl: "some.Other", Value: []byte("x")}}, {Value: runcAny(t, "")},
		},
	}
	full := Start{Bootstrap: true, Options: options, ShimCgroup: "/c", EventAddress: "/e", SocketDir: "/s", Debug: true}
	for _, tt := range []struct {
		name  string
		stdin []byte
		want  Start
	}{
		{"parameters", marshal(t, params), full},
		{"options", marshal(t, runcAny(t, "")), Start{Options: options, ShimCgroup: "/c"}},
		{"options with a prefix", marshal(t, runcAny(t, "type.googleapis.com/")), Start{Options: options, ShimCgroup: "/c"}},
		{"nothing", nil, Start{}},
		{"no protobuf", []byte("{}"), Start{}},
		{"parameters of another shim", marshal(t, &bootstrap.BootstrapParams{InstanceID: "j", Namespace: "n"}), Start{}},
		{"parameters of another namespace", marshal(t, &bootstrap.BootstrapParams{InstanceID: "i", Namespace: "m"}), Start{}},
	} {
		got, err := ParseStart(tt.stdin, "i", "n")
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v, %s", tt.name, err, diff)
		}
	}
	// Options that are a parameter message for a shim of that strange name.
	if got, _ := ParseStart(marshal(t, runcAny(t, "")), "i", ""); got.Bootstrap {
		t.Error("options are taken for parameters")
	}
	bad := marshal(t, &anypb.Any{TypeUrl: optionsName, Value: []byte{0xff}})
	if _, err := ParseStart(bad, "i", "n"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("options that do not decode: %v", err)
	}
}

func TestAnswersAreInTheFormOfTheQuestion(t *testing.T) {
	b, err := Start{Bootstrap: true}.Answer("unix:///x")
	var r bootstrap.BootstrapResult
	if err != nil || proto.Unmarshal(b, &r) != nil || r.Version != 3 || r.Address != "unix:///x" || r.Protocol != "ttrpc" {
		t.Errorf("answer is %v, %v", &r, err)
	}
	b, err = Start{}.Answer("unix:///x")
	if want := `{"version":2,"address":"unix:///x","protocol":"ttrpc"}`; err != nil || string(b) != want {
		t.Errorf("answer is %s, %v, want %s", b, err, want)
	}
	b, err = ReadyLine("unix:///x")
	if want := `{"version":3,"address":"unix:///x","protocol":"ttrpc"}` + "\n"; err != nil || string(b) != want {
		t.Errorf("line is %q, %v, want %q", b, err, want)
	}
}

func FuzzParseStart(f *testing.F) {
	f.Add(marshal(f, runcAny(f, "")), "i", "n")
	f.Add(marshal(f, &bootstrap.BootstrapParams{InstanceID: "i", Namespace: "n", Extensions: []*bootstrap.Extension{{Value: runcAny(f, "")}}}), "i", "n")
	f.Add([]byte{}, "", "")
	f.Add([]byte{0x0a, 0x00}, "", "")
	f.Fuzz(func(t *testing.T, stdin []byte, id, ns string) {
		s, err := ParseStart(stdin, id, ns)
		if s.Bootstrap && id == "" {
			t.Errorf("parameters for nobody: %+v", s)
		}
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("error is %v", err)
		}
		if !s.Bootstrap && (s.SocketDir != "" || s.EventAddress != "") {
			t.Errorf("no parameters, and yet %+v", s)
		}
		InfoOptions(stdin)
	})
}

// A fake is a runner of which the tests need one call.
type fake struct {
	runner.Runner
	create runner.CreateRequest
	err    error
	ended  chan struct{}
}

func (f *fake) Create(_ context.Context, r runner.CreateRequest) (uint32, error) {
	f.create = r
	return 7, f.err
}

func (f *fake) Shutdown(context.Context) error {
	close(f.ended)
	return nil
}

func dial(t *testing.T, r runner.Runner, options runner.Options) (taskpb.TTRPCTaskService, *Server, net.Conn) {
	t.Helper()
	srv, err := NewServer(r, 42, options)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		srv.Close()
		if err := <-done; !errors.Is(err, ttrpc.ErrServerClosed) {
			t.Errorf("serve ended with %v", err)
		}
	})
	return taskpb.NewTTRPCTaskClient(ttrpc.NewClient(conn)), srv, conn
}

func TestCreateBringsEverything(t *testing.T) {
	f := &fake{}
	c, _, _ := dial(t, f, runner.Options{Binary: "default"})
	r, err := c.Create(t.Context(), &taskpb.CreateTaskRequest{
		ID: "i", Bundle: "/b", Terminal: true, Stdin: "1", Stdout: "2", Stderr: "3", Checkpoint: "/c",
		Rootfs:  []*types.Mount{{Type: "bind", Source: "/x", Target: "y", Options: []string{"ro"}}},
		Options: runcAny(t, ""),
	})
	if err != nil || r.Pid != 7 {
		t.Errorf("create says %v, %v", r, err)
	}
	want := runner.CreateRequest{
		ID: "i", Bundle: "/b", Checkpoint: "/c",
		IO:      task.IO{Stdin: "1", Stdout: "2", Stderr: "3", Terminal: true},
		Rootfs:  []mount.Mount{{Type: "bind", Source: "/x", Target: "y", Options: []string{"ro"}}},
		Options: runner.Options{Binary: "crun", Root: "/r", SystemdCgroup: true, NoPivotRoot: true, NoNewKeyring: true, IOUID: 1, IOGID: 2},
	}
	if diff := cmp.Diff(want, f.create); diff != "" {
		t.Error(diff)
	}
	if _, err := c.Create(t.Context(), &taskpb.CreateTaskRequest{ID: "i"}); err != nil || f.create.Options.Binary != "default" {
		t.Errorf("a task without options gets %+v, %v", f.create.Options, err)
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	f := &fake{}
	c, _, _ := dial(t, f, runner.Options{})
	for _, kind := range []error{errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition, errdefs.ErrNotImplemented, errdefs.ErrUnavailable, errdefs.ErrResourceExhausted} {
		f.err = kind
		_, err := c.Create(t.Context(), &taskpb.CreateTaskRequest{})
		if !errors.Is(errgrpc.ToNative(err), kind) {
			t.Errorf("%v arrives as %v", kind, err)
		}
	}
}

func TestShutdownIsAnsweredBeforeTheServerEnds(t *testing.T) {
	f := &fake{ended: make(chan struct{})}
	c, srv, conn := dial(t, f, runner.Options{})
	left := make(chan struct{})
	go func() {
		<-f.ended
		srv.Farewell(t.Context())
		close(left)
	}()
	if _, err := c.Shutdown(t.Context(), &taskpb.ShutdownRequest{}); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	select {
	case <-left:
		t.Error("farewell before the client has gone")
	case <-time.After(50 * time.Millisecond):
	}
	conn.Close()
	<-left
}

// An eventbus keeps what it is sent.
type eventbus struct {
	mu  sync.Mutex
	got []*types.Envelope
	ns  []string
	err error
}

func (b *eventbus) Forward(ctx context.Context, r *eventspb.ForwardRequest) (*emptypb.Empty, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.got = append(b.got, r.Envelope)
	ns, _ := ttrpc.GetMetadataValue(ctx, namespaceKey)
	b.ns = append(b.ns, ns)
	return &emptypb.Empty{}, errgrpc.ToGRPC(b.err)
}

func TestEventsAreContainerds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "e")
	f := NewForwarder("unix://"+path, "n")
	defer f.Close()
	at := time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC)
	if err := f.Publish(t.Context(), runner.Event{Topic: runner.Started, Time: at}); err == nil {
		t.Error("an event is taken by nobody")
	}
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	bus := &eventbus{}
	eventspb.RegisterTTRPCEventsService(srv, bus)
	go srv.Serve(context.Background(), lis)

	exit := task.Exit{Pid: 9, Status: 3, At: at}
	for _, tt := range []struct {
		event runner.Event
		want  proto.Message
	}{
		{runner.Event{Topic: runner.Created, Bundle: "/b", IO: task.IO{Stdin: "i", Terminal: true}, Rootfs: []mount.Mount{{Type: "t"}}},
			&events.TaskCreate{ContainerID: "c", Bundle: "/b", Pid: 9, IO: &events.TaskIO{Stdin: "i", Terminal: true}, Rootfs: []*types.Mount{{Type: "t"}}}},
		{runner.Event{Topic: runner.Started}, &events.TaskStart{ContainerID: "c", Pid: 9}},
		{runner.Event{Topic: runner.OutOfMemory}, &events.TaskOOM{ContainerID: "c"}},
		{runner.Event{Topic: runner.Exited, Exit: exit}, &events.TaskExit{ContainerID: "c", ID: "c", Pid: 9, ExitStatus: 3, ExitedAt: fromTime(at)}},
		{runner.Event{Topic: runner.Exited, ExecID: "x", Exit: exit}, &events.TaskExit{ContainerID: "c", ID: "x", Pid: 9, ExitStatus: 3, ExitedAt: fromTime(at)}},
		{runner.Event{Topic: runner.Deleted, Exit: exit}, &events.TaskDelete{ContainerID: "c", Pid: 9, ExitStatus: 3, ExitedAt: fromTime(at)}},
		{runner.Event{Topic: runner.ExecAdded, ExecID: "x"}, &events.TaskExecAdded{ContainerID: "c", ExecID: "x"}},
		{runner.Event{Topic: runner.ExecStarted, ExecID: "x"}, &events.TaskExecStarted{ContainerID: "c", ExecID: "x", Pid: 9}},
		{runner.Event{Topic: runner.Paused}, &events.TaskPaused{ContainerID: "c"}},
		{runner.Event{Topic: runner.Resumed}, &events.TaskResumed{ContainerID: "c"}},
	} {
		e := tt.event
		e.ContainerID, e.Pid, e.Time = "c", 9, at
		// What is kept in the bundle is read again as it was.
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var again runner.Event
		if err := json.Unmarshal(b, &again); err != nil {
			t.Fatal(err)
		}
		if err := f.Publish(t.Context(), again); err != nil {
			t.Fatalf("%s: %v", e.Topic, err)
		}
		got := bus.got[len(bus.got)-1]
		want := &types.Envelope{
			Timestamp: fromTime(at), Namespace: "n", Topic: string(e.Topic),
			Event: &anypb.Any{TypeUrl: string(tt.want.ProtoReflect().Descriptor().FullName()), Value: marshal(t, tt.want)},
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", e.Topic, diff)
		}
		if ns := bus.ns[len(bus.ns)-1]; ns != "n" {
			t.Errorf("%s: namespace %q", e.Topic, ns)
		}
	}
	if err := f.Publish(t.Context(), runner.Event{Topic: "/strange"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a strange event: %v", err)
	}
	bus.err = errdefs.ErrInvalidArgument
	if err := f.Publish(t.Context(), runner.Event{Topic: runner.Paused}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an event that is refused: %v", err)
	}
}

func TestStatsAreOfTheCgroupsVersion(t *testing.T) {
	for _, unified := range []bool{false, true} {
		a, err := fromStats(runner.Stats{Unified: unified, PidsMax: 1<<64 - 1, IO: []runner.IOStat{{Major: 1}}})
		want := "io.containerd.cgroups.v1.Metrics"
		if unified {
			want = "io.containerd.cgroups.v2.Metrics"
		}
		if err != nil || a.TypeUrl != want || len(a.Value) == 0 {
			t.Errorf("stats are a %s, %v, want %s", a.GetTypeUrl(), err, want)
		}
	}
}
