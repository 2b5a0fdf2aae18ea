package shimrpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	api "github.com/containerd/containerd/api/runtime/task/v2"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/mount/mountrpc"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

// A fake is the other end: it keeps the last request and gives a set answer.
type fake struct {
	services []string // that it knows

	mu        sync.Mutex // guards what follows
	method    string
	namespace string
	request   proto.Message
	response  proto.Message
	err       error
	hang      chan struct{} // not nil: no answer before it is closed
}

// requests are the messages of every method of the task API.
var requests = map[string]func() proto.Message{
	"State":      func() proto.Message { return &api.StateRequest{} },
	"Create":     func() proto.Message { return &api.CreateTaskRequest{} },
	"Start":      func() proto.Message { return &api.StartRequest{} },
	"Delete":     func() proto.Message { return &api.DeleteRequest{} },
	"Pids":       func() proto.Message { return &api.PidsRequest{} },
	"Pause":      func() proto.Message { return &api.PauseRequest{} },
	"Resume":     func() proto.Message { return &api.ResumeRequest{} },
	"Checkpoint": func() proto.Message { return &api.CheckpointTaskRequest{} },
	"Kill":       func() proto.Message { return &api.KillRequest{} },
	"Exec":       func() proto.Message { return &api.ExecProcessRequest{} },
	"ResizePty":  func() proto.Message { return &api.ResizePtyRequest{} },
	"CloseIO":    func() proto.Message { return &api.CloseIORequest{} },
	"Update":     func() proto.Message { return &api.UpdateTaskRequest{} },
	"Wait":       func() proto.Message { return &api.WaitRequest{} },
	"Stats":      func() proto.Message { return &api.StatsRequest{} },
	"Connect":    func() proto.Message { return &api.ConnectRequest{} },
	"Shutdown":   func() proto.Message { return &api.ShutdownRequest{} },
}

// serve starts the fake on a socket and connects to it.
func (f *fake) serve(t *testing.T, version int) task.Shim {
	t.Helper()
	dir, err := os.MkdirTemp("", "shimrpc")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	methods := make(map[string]ttrpc.Method)
	for name, request := range requests {
		methods[name] = func(ctx context.Context, unmarshal func(any) error) (any, error) {
			return f.answer(ctx, name, request(), unmarshal)
		}
	}
	for _, s := range f.services {
		srv.RegisterService(s, &ttrpc.ServiceDesc{Methods: methods})
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(t.Context(), lis) }()
	t.Cleanup(func() {
		srv.Close()
		<-served
		os.RemoveAll(dir)
	})
	s, err := Protocol{}.Connect(t.Context(), "one", task.ShimAddress{Version: version, Address: "unix://" + socket, Protocol: "ttrpc"})
	if err != nil {
		t.Fatalf("Connect: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func (f *fake) answer(ctx context.Context, method string, req proto.Message, unmarshal func(any) error) (any, error) {
	if err := unmarshal(req); err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.method, f.request = method, req
	if md, ok := ttrpc.GetMetadata(ctx); ok {
		v, _ := md.Get(namespaceHeader)
		f.namespace = strings.Join(v, ",")
	}
	hang, resp, err := f.hang, f.response, f.err
	f.mu.Unlock()
	if hang != nil {
		<-hang
	}
	if resp == nil {
		resp = &emptypb.Empty{}
	}
	return resp, err
}

func TestEveryCallCarriesItsFields(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	io := task.IO{Stdin: "/in", Stdout: "/out", Stderr: "/err", Terminal: true}
	value := typed.Value{URL: "u", Data: []byte("data")}
	anyValue := &anypb.Any{TypeUrl: "u", Value: []byte("data")}
	deleted := &api.DeleteResponse{Pid: 4, ExitStatus: 5, ExitedAt: timestamppb.New(at)}
	exit := task.Exit{Pid: 4, Status: 5, At: at}
	type none struct{}
	for _, c := range []struct {
		name     string
		call     func(context.Context, task.Shim) (any, error)
		method   string
		request  proto.Message
		response proto.Message
		want     any
	}{
		{"create", func(ctx context.Context, s task.Shim) (any, error) {
			return s.Create(ctx, task.ShimCreate{ID: "c", Bundle: "/b", Rootfs: []mount.Mount{{Type: "overlay", Source: "s", Target: "t", Options: []string{"ro"}}}, IO: io, Checkpoint: "/cp", Options: &value})
		}, "Create", &api.CreateTaskRequest{ID: "c", Bundle: "/b", Rootfs: mountrpc.To([]mount.Mount{{Type: "overlay", Source: "s", Target: "t", Options: []string{"ro"}}}), Terminal: true, Stdin: "/in", Stdout: "/out", Stderr: "/err", Checkpoint: "/cp", Options: anyValue}, &api.CreateTaskResponse{Pid: 7}, uint32(7)},
		{"start", func(ctx context.Context, s task.Shim) (any, error) { return s.Start(ctx, "c", "e") },
			"Start", &api.StartRequest{ID: "c", ExecID: "e"}, &api.StartResponse{Pid: 8}, uint32(8)},
		{"delete", func(ctx context.Context, s task.Shim) (any, error) { return s.Delete(ctx, "c") },
			"Delete", &api.DeleteRequest{ID: "c"}, deleted, exit},
		{"delete process", func(ctx context.Context, s task.Shim) (any, error) { return s.DeleteProcess(ctx, "c", "e") },
			"Delete", &api.DeleteRequest{ID: "c", ExecID: "e"}, deleted, exit},
		{"get of the running", func(ctx context.Context, s task.Shim) (any, error) { return s.Get(ctx, "c", "e") },
			"State", &api.StateRequest{ID: "c", ExecID: "e"},
			&api.StateResponse{ID: "c", Pid: 9, Status: tasktypes.Status_PAUSING, Stdin: "/in", Stdout: "/out", Stderr: "/err", Terminal: true},
			task.Process{ContainerID: "c", ExecID: "e", Pid: 9, Status: task.Pausing, IO: io}},
		{"get of the stopped", func(ctx context.Context, s task.Shim) (any, error) { return s.Get(ctx, "c", "") },
			"State", &api.StateRequest{ID: "c"},
			&api.StateResponse{Pid: 9, Status: tasktypes.Status_STOPPED, ExitStatus: 1, ExitedAt: timestamppb.New(at)},
			task.Process{ContainerID: "c", Pid: 9, Status: task.Stopped, Exit: task.Exit{Pid: 9, Status: 1, At: at}}},
		{"wait", func(ctx context.Context, s task.Shim) (any, error) { return s.Wait(ctx, "c", "e") },
			"Wait", &api.WaitRequest{ID: "c", ExecID: "e"}, &api.WaitResponse{ExitStatus: 5, ExitedAt: timestamppb.New(at)}, task.Exit{Status: 5, At: at}},
		{"kill", func(ctx context.Context, s task.Shim) (any, error) { return none{}, s.Kill(ctx, "c", "e", 15, true) },
			"Kill", &api.KillRequest{ID: "c", ExecID: "e", Signal: 15, All: true}, nil, none{}},
		{"exec", func(ctx context.Context, s task.Shim) (any, error) {
			return none{}, s.Exec(ctx, task.ExecRequest{ContainerID: "c", ExecID: "e", Spec: value, IO: io})
		}, "Exec", &api.ExecProcessRequest{ID: "c", ExecID: "e", Terminal: true, Stdin: "/in", Stdout: "/out", Stderr: "/err", Spec: anyValue}, nil, none{}},
		{"pids", func(ctx context.Context, s task.Shim) (any, error) { return s.Pids(ctx, "c") },
			"Pids", &api.PidsRequest{ID: "c"}, &api.PidsResponse{Processes: []*tasktypes.ProcessInfo{{Pid: 1}, {Pid: 2, Info: anyValue}}},
			[]task.ProcessInfo{{Pid: 1}, {Pid: 2, Info: &value}}},
		{"pause", func(ctx context.Context, s task.Shim) (any, error) { return none{}, s.Pause(ctx, "c") },
			"Pause", &api.PauseRequest{ID: "c"}, nil, none{}},
		{"resume", func(ctx context.Context, s task.Shim) (any, error) { return none{}, s.Resume(ctx, "c") },
			"Resume", &api.ResumeRequest{ID: "c"}, nil, none{}},
		{"resize", func(ctx context.Context, s task.Shim) (any, error) { return none{}, s.ResizePty(ctx, "c", "e", 80, 25) },
			"ResizePty", &api.ResizePtyRequest{ID: "c", ExecID: "e", Width: 80, Height: 25}, nil, none{}},
		{"close input", func(ctx context.Context, s task.Shim) (any, error) { return none{}, s.CloseIO(ctx, "c", "e") },
			"CloseIO", &api.CloseIORequest{ID: "c", ExecID: "e", Stdin: true}, nil, none{}},
		{"update", func(ctx context.Context, s task.Shim) (any, error) {
			return none{}, s.Update(ctx, "c", value, map[string]string{"a": "b"})
		}, "Update", &api.UpdateTaskRequest{ID: "c", Resources: anyValue, Annotations: map[string]string{"a": "b"}}, nil, none{}},
		{"checkpoint", func(ctx context.Context, s task.Shim) (any, error) {
			return none{}, s.Checkpoint(ctx, "c", "/p", &value)
		},
			"Checkpoint", &api.CheckpointTaskRequest{ID: "c", Path: "/p", Options: anyValue}, nil, none{}},
		{"stats", func(ctx context.Context, s task.Shim) (any, error) { return s.Stats(ctx, "c") },
			"Stats", &api.StatsRequest{ID: "c"}, &api.StatsResponse{Stats: anyValue}, &value},
		{"info", func(ctx context.Context, s task.Shim) (any, error) { return s.Info(ctx, "c") },
			"Connect", &api.ConnectRequest{ID: "c"}, &api.ConnectResponse{ShimPid: 1, TaskPid: 2, Version: "3"}, task.ShimInfo{ShimPid: 1, TaskPid: 2, Version: "3"}},
		{"shutdown", func(ctx context.Context, s task.Shim) (any, error) { return none{}, s.Shutdown(ctx, "c") },
			"Shutdown", &api.ShutdownRequest{ID: "c"}, nil, none{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fake{services: []string{serviceV3}, response: c.response}
			got, err := c.call(t.Context(), f.serve(t, 3))
			if err != nil {
				t.Fatal(err)
			}
			if f.method != c.method || f.namespace != "one" {
				t.Errorf("method %s in namespace %q, want %s in one", f.method, f.namespace, c.method)
			}
			if diff := cmp.Diff(c.request, f.request, protocmp.Transform()); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	for code, kind := range map[codes.Code]error{
		codes.NotFound:           errdefs.ErrNotFound,
		codes.AlreadyExists:      errdefs.ErrAlreadyExists,
		codes.FailedPrecondition: errdefs.ErrFailedPrecondition,
		codes.InvalidArgument:    errdefs.ErrInvalidArgument,
		codes.Unimplemented:      errdefs.ErrNotImplemented,
		codes.Unavailable:        errdefs.ErrUnavailable,
		codes.Unknown:            errdefs.ErrUnknown,
		codes.DeadlineExceeded:   context.DeadlineExceeded,
	} {
		f := &fake{services: []string{serviceV3}, err: status.Error(code, "why")}
		if err := f.serve(t, 3).Pause(t.Context(), "c"); !errors.Is(err, kind) || !strings.Contains(err.Error(), "why") {
			t.Errorf("%v: got %v, want %v", code, err, kind)
		}
	}
}

func TestOlderShimIsSpokenToInItsVersion(t *testing.T) {
	for _, version := range []int{2, 3} {
		f := &fake{services: []string{serviceV2}, response: &api.CreateTaskResponse{Pid: 3}}
		s := f.serve(t, version)
		if pid, err := s.Create(t.Context(), task.ShimCreate{ID: "c"}); err != nil || pid != 3 {
			t.Errorf("version %d: Create: %d, %v", version, pid, err)
		}
		f.response = nil
		if err := s.Pause(t.Context(), "c"); err != nil {
			t.Errorf("version %d: Pause: %v", version, err)
		}
	}
	f := &fake{services: []string{serviceV2}, response: &api.ConnectResponse{ShimPid: 1}}
	if info, err := f.serve(t, 3).Info(t.Context(), "c"); err != nil || info.ShimPid != 1 {
		t.Errorf("Info: %+v, %v", info, err)
	}
	f = &fake{services: []string{"another.Service"}}
	if _, err := f.serve(t, 3).Info(t.Context(), "c"); !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Errorf("Info of a shim that knows neither: %v", err)
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	f := &fake{services: []string{serviceV3}, hang: make(chan struct{})}
	defer close(f.hang)
	s := f.serve(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Get(ctx, "c", ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Get: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := s.Wait(ctx, "c", ""); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v", err)
	}
}

func TestGoneConnectionIsUnavailable(t *testing.T) {
	lis, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := lis.Accept()
		accepted <- c
	}()
	address := task.ShimAddress{Version: 3, Address: "unix://" + lis.Addr().String(), Protocol: "ttrpc"}
	s, err := Protocol{}.Connect(t.Context(), "one", address)
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := s.Wait(t.Context(), "c", "")
		waiting <- err
	}()
	(<-accepted).Close()
	lis.Close()
	if err := <-waiting; !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Wait: %v", err)
	}
	<-s.Done()
	if err := s.Kill(t.Context(), "c", "", 9, false); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Kill: %v", err)
	}
	if err := s.Shutdown(t.Context(), "c"); err != nil {
		t.Errorf("Shutdown of a shim that is gone: %v", err)
	}
	if _, err := (Protocol{}).Connect(t.Context(), "one", address); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Connect to a socket that is gone: %v", err)
	}
}

// A stopped shim reads nothing. What is asked of it fills its socket, and then
// may not wait for ever behind a lock.
func TestShimThatReadsNothingIsGivenUp(t *testing.T) {
	lis, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	s, err := Protocol{}.Connect(t.Context(), "one", task.ShimAddress{Version: 3, Address: "unix://" + lis.Addr().String(), Protocol: "ttrpc"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var calls sync.WaitGroup
	for range 4 {
		calls.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := s.Exec(ctx, task.ExecRequest{ContainerID: "c", ExecID: "e", Spec: typed.Value{Data: make([]byte, 1<<20)}})
			if !errors.Is(err, errdefs.ErrUnavailable) {
				t.Errorf("Exec: %v", err)
			}
		})
	}
	calls.Wait()
	<-s.Done()
}

func TestRequestThatIsTooLargeIsSaidSo(t *testing.T) {
	f := &fake{services: []string{serviceV3}}
	s := f.serve(t, 3)
	err := s.Exec(t.Context(), task.ExecRequest{Spec: typed.Value{Data: make([]byte, 5<<20)}})
	if !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("Exec: %v", err)
	}
	if err := s.Pause(t.Context(), "c"); err != nil {
		t.Errorf("Pause after it: %v", err)
	}
}

func TestParamsAreWhatAShimReads(t *testing.T) {
	start := task.ShimStart{
		Namespace: "one", ID: "c", Address: "/run/gantry/gantry.sock", Events: "/run/gantry/gantry.sock.ttrpc",
		Publisher: "/bin/gantryd", Sockets: "/run/gantry/s", Options: &typed.Value{URL: "containerd.runc.v1.Options", Data: []byte{1}},
	}
	b, err := Protocol{}.Params(start, false)
	if err != nil {
		t.Fatal(err)
	}
	var got bootstrap.BootstrapParams
	if err := proto.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	want := &bootstrap.BootstrapParams{
		InstanceID: "c", Namespace: "one", ContainerdGrpcAddress: start.Address, ContainerdTtrpcAddress: start.Events,
		ContainerdBinary: "/bin/gantryd", SocketDir: &start.Sockets,
		Extensions: []*bootstrap.Extension{{Value: toAny(start.Options)}},
	}
	if diff := cmp.Diff(want, &got, protocmp.Transform()); diff != "" {
		t.Errorf("params (-want +got):\n%s", diff)
	}
	if b, err = (Protocol{}).Params(start, true); err != nil {
		t.Fatal(err)
	}
	var options anypb.Any
	if err := proto.Unmarshal(b, &options); err != nil || options.TypeUrl != "containerd.runc.v1.Options" {
		t.Errorf("legacy params: %v, %v", &options, err)
	}
	if b, err = (Protocol{}).Params(task.ShimStart{ID: "c"}, true); err != nil || len(b) != 0 {
		t.Errorf("legacy params without options: %q, %v", b, err)
	}
}

func TestAnswerOfAStartedShim(t *testing.T) {
	result := func(r *bootstrap.BootstrapResult) string {
		b, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	v3 := task.ShimAddress{Version: 3, Address: "unix:///run/s/1", Protocol: "ttrpc"}
	v2 := task.ShimAddress{Version: 2, Address: "unix:///run/s/1", Protocol: "ttrpc"}
	for output, want := range map[string]task.ShimAddress{
		`{"version":3,"address":"unix:///run/s/1","protocol":"ttrpc"}` + "\n":                         v3,
		`{"version":2,"address":"unix:///run/s/1","protocol":"ttrpc","x":1}`:                          v2,
		result(&bootstrap.BootstrapResult{Version: 3, Address: "unix:///run/s/1", Protocol: "ttrpc"}): v3,
		"unix:///run/s/1":   v2,
		"unix:///run/s/1\n": v2,
	} {
		got, err := Protocol{}.Started([]byte(output))
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", output, got, err, want)
		}
	}
	for output, kind := range map[string]error{
		"":                                  errdefs.ErrInvalidArgument,
		"\n":                                errdefs.ErrInvalidArgument,
		"{":                                 errdefs.ErrInvalidArgument,
		"panic: something\nunix:///run/s/1": errdefs.ErrInvalidArgument,
		`{"version":1,"address":"unix:///run/s/1","protocol":"ttrpc"}`:                          errdefs.ErrNotImplemented,
		`{"version":4,"address":"unix:///run/s/1","protocol":"ttrpc"}`:                          errdefs.ErrNotImplemented,
		`{"version":3,"address":"unix:///run/s/1","protocol":"grpc"}`:                           errdefs.ErrNotImplemented,
		`{"version":3,"address":"unix:///run/s/1"}`:                                             errdefs.ErrNotImplemented,
		`{"version":3,"address":"vsock://3:1024","protocol":"ttrpc"}`:                           errdefs.ErrNotImplemented,
		`{"version":3,"address":"","protocol":"ttrpc"}`:                                         errdefs.ErrNotImplemented,
		`{"version":3,"address":"unix://@abstract","protocol":"ttrpc"}`:                         errdefs.ErrInvalidArgument,
		`{"version":3,"address":"unix://relative/s","protocol":"ttrpc"}`:                        errdefs.ErrInvalidArgument,
		result(&bootstrap.BootstrapResult{Version: 3}):                                          errdefs.ErrInvalidArgument,
		result(&bootstrap.BootstrapResult{Version: 9, Address: "unix:///s", Protocol: "ttrpc"}): errdefs.ErrNotImplemented,
		strings.Repeat("garbage ", 1000):                                                        errdefs.ErrInvalidArgument,
	} {
		_, err := Protocol{}.Started([]byte(output))
		if !errors.Is(err, kind) {
			t.Errorf("%.80q: got %v, want %v", output, err, kind)
		}
		if err != nil && len(err.Error()) > 2000 {
			t.Errorf("%.80q: error of %d bytes", output, len(err.Error()))
		}
	}
}

func TestAnswerOfADeletedShim(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	b, err := proto.Marshal(&api.DeleteResponse{Pid: 3, ExitStatus: 137, ExitedAt: timestamppb.New(at)})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := (Protocol{}).Deleted(b); err != nil || got != (task.Exit{Pid: 3, Status: 137, At: at}) {
		t.Errorf("Deleted: %+v, %v", got, err)
	}
	for _, output := range []string{"", "unix:///x", "runc: no such container\n"} {
		if got, err := (Protocol{}).Deleted([]byte(output)); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Deleted(%q): %+v, %v", output, got, err)
		}
	}
}

func FuzzStarted(f *testing.F) {
	f.Add([]byte(`{"version":3,"address":"unix:///run/s/1","protocol":"ttrpc"}`))
	f.Add([]byte("unix:///run/s/1"))
	f.Add([]byte("\x08\x03\x12\x0funix:///run/s/1\x1a\x05ttrpc"))
	f.Fuzz(func(t *testing.T, output []byte) {
		a, err := Protocol{}.Started(output)
		if err == nil && (!strings.HasPrefix(a.Address, "unix:///") || a.Version > versionMax) {
			t.Errorf("%q: %+v", output, a)
		}
		if e, err := (Protocol{}).Deleted(output); err == nil {
			_ = fmt.Sprint(e)
		}
	})
}
