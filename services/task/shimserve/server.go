package shimserve

import (
	"context"
	"fmt"
	"net"
	"time"

	taskpb "github.com/containerd/containerd/api/runtime/task/v2"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/mount/mountrpc"
	"github.com/gantryd/gantry/services/runner"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

// A Server answers for a runner.
type Server struct {
	ttrpc *ttrpc.Server
	conns *connections
}

// NewServer returns a server that answers for r. Only processes of our own
// user and group may connect. Options are those that the shim was started
// with, for tasks that bring none.
func NewServer(r runner.Runner, pid int, options runner.Options) (*Server, error) {
	conns := newConnections()
	srv, err := ttrpc.NewServer(
		ttrpc.WithServerHandshaker(conns),
		ttrpc.WithUnaryServerInterceptor(mapErrors),
	)
	if err != nil {
		return nil, err
	}
	desc := (&server{runner: r, pid: uint32(pid), options: options}).desc()
	srv.RegisterService("containerd.task.v2.Task", desc)
	srv.RegisterService("containerd.task.v3.Task", desc)
	return &Server{ttrpc: srv, conns: conns}, nil
}

// Serve answers on lis until Close.
func (s *Server) Serve(lis net.Listener) error {
	return s.ttrpc.Serve(context.Background(), lis)
}

// Farewell returns when every client has gone, which it does when it has the
// answer that it waits for, or when ctx ends.
func (s *Server) Farewell(ctx context.Context) {
	select {
	case <-s.conns.none():
	case <-ctx.Done():
	}
}

// Close ends Serve and every connection.
func (s *Server) Close() error { return s.ttrpc.Close() }

func mapErrors(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	resp, err := method(ctx, unmarshal)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return resp, nil
}

type server struct {
	runner  runner.Runner
	pid     uint32
	options runner.Options
}

var _ taskpb.TTRPCTaskService = (*server)(nil) // a method we forget must not compile

// desc is written by hand because the generated code of v3 brings gRPC.
func (s *server) desc() *ttrpc.ServiceDesc {
	return &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"State":      method(s.State),
		"Create":     method(s.Create),
		"Start":      method(s.Start),
		"Delete":     method(s.Delete),
		"Pids":       method(s.Pids),
		"Pause":      method(s.Pause),
		"Resume":     method(s.Resume),
		"Checkpoint": method(s.Checkpoint),
		"Kill":       method(s.Kill),
		"Exec":       method(s.Exec),
		"ResizePty":  method(s.ResizePty),
		"CloseIO":    method(s.CloseIO),
		"Update":     method(s.Update),
		"Wait":       method(s.Wait),
		"Stats":      method(s.Stats),
		"Connect":    method(s.Connect),
		"Shutdown":   method(s.Shutdown),
	}}
}

func method[Req, Resp any](f func(context.Context, *Req) (*Resp, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		var req Req
		if err := unmarshal(&req); err != nil {
			return nil, err
		}
		resp, err := f(ctx, &req)
		if err != nil {
			return nil, err
		}
		return resp, nil
	}
}

func (s *server) Create(ctx context.Context, r *taskpb.CreateTaskRequest) (*taskpb.CreateTaskResponse, error) {
	options := s.options
	if r.Options != nil {
		o, err := toOptions(r.Options)
		if err != nil {
			return nil, err
		}
		options = o
	}
	pid, err := s.runner.Create(ctx, runner.CreateRequest{
		ID:         r.ID,
		Bundle:     r.Bundle,
		Rootfs:     mountrpc.From(r.Rootfs),
		IO:         task.IO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
		Checkpoint: r.Checkpoint,
		Options:    options,
	})
	return &taskpb.CreateTaskResponse{Pid: pid}, err
}

func (s *server) Start(ctx context.Context, r *taskpb.StartRequest) (*taskpb.StartResponse, error) {
	pid, err := s.runner.Start(ctx, r.ID, r.ExecID)
	return &taskpb.StartResponse{Pid: pid}, err
}

func (s *server) Delete(ctx context.Context, r *taskpb.DeleteRequest) (*taskpb.DeleteResponse, error) {
	var e task.Exit
	var err error
	if r.ExecID == "" {
		e, err = s.runner.Delete(ctx, r.ID)
	} else {
		e, err = s.runner.DeleteProcess(ctx, r.ID, r.ExecID)
	}
	return fromExit(e), err
}

func (s *server) State(ctx context.Context, r *taskpb.StateRequest) (*taskpb.StateResponse, error) {
	st, err := s.runner.State(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return &taskpb.StateResponse{
		ID:         st.ContainerID,
		ExecID:     st.ExecID,
		Bundle:     st.Bundle,
		Pid:        st.Pid,
		Status:     fromStatus(st.Status),
		Stdin:      st.IO.Stdin,
		Stdout:     st.IO.Stdout,
		Stderr:     st.IO.Stderr,
		Terminal:   st.IO.Terminal,
		ExitStatus: st.Exit.Status,
		ExitedAt:   fromTime(st.Exit.At),
	}, nil
}

func (s *server) Pids(ctx context.Context, r *taskpb.PidsRequest) (*taskpb.PidsResponse, error) {
	pids, err := s.runner.Pids(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	resp := &taskpb.PidsResponse{}
	for _, p := range pids {
		info := &tasktypes.ProcessInfo{Pid: p.Pid}
		if p.Exec != "" {
			if info.Info, err = processDetails(p.Exec); err != nil {
				return nil, err
			}
		}
		resp.Processes = append(resp.Processes, info)
	}
	return resp, nil
}

func (s *server) Pause(ctx context.Context, r *taskpb.PauseRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.runner.Pause(ctx, r.ID)
}

func (s *server) Resume(ctx context.Context, r *taskpb.ResumeRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.runner.Resume(ctx, r.ID)
}

func (s *server) Checkpoint(ctx context.Context, r *taskpb.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.runner.Checkpoint(ctx, r.ID, r.Path)
}

func (s *server) Kill(ctx context.Context, r *taskpb.KillRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.runner.Kill(ctx, r.ID, r.ExecID, r.Signal, r.All)
}

func (s *server) Exec(ctx context.Context, r *taskpb.ExecProcessRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.runner.Exec(ctx, task.ExecRequest{
		ContainerID: r.ID,
		ExecID:      r.ExecID,
		Spec:        typed.Value{URL: r.Spec.GetTypeUrl(), Data: r.Spec.GetValue()},
		IO:          task.IO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
	})
}

func (s *server) ResizePty(ctx context.Context, r *taskpb.ResizePtyRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.runner.ResizePty(ctx, r.ID, r.ExecID, r.Width, r.Height)
}

func (s *server) CloseIO(ctx context.Context, r *taskpb.CloseIORequest) (*emptypb.Empty, error) {
	if !r.Stdin {
		return &emptypb.Empty{}, nil // there is nothing else to close
	}
	return &emptypb.Empty{}, s.runner.CloseIO(ctx, r.ID, r.ExecID)
}

func (s *server) Update(ctx context.Context, r *taskpb.UpdateTaskRequest) (*emptypb.Empty, error) {
	v := typed.Value{URL: r.Resources.GetTypeUrl(), Data: r.Resources.GetValue()}
	return &emptypb.Empty{}, s.runner.Update(ctx, r.ID, v)
}

func (s *server) Wait(ctx context.Context, r *taskpb.WaitRequest) (*taskpb.WaitResponse, error) {
	e, err := s.runner.Wait(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return &taskpb.WaitResponse{ExitStatus: e.Status, ExitedAt: fromTime(e.At)}, nil
}

func (s *server) Stats(ctx context.Context, r *taskpb.StatsRequest) (*taskpb.StatsResponse, error) {
	st, err := s.runner.Stats(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	stats, err := fromStats(st)
	if err != nil {
		return nil, err
	}
	return &taskpb.StatsResponse{Stats: stats}, nil
}

// Connect tells who is here. The task's pid is 0 if there is none.
func (s *server) Connect(ctx context.Context, r *taskpb.ConnectRequest) (*taskpb.ConnectResponse, error) {
	resp := &taskpb.ConnectResponse{ShimPid: s.pid, Version: "3"}
	if st, err := s.runner.State(ctx, r.ID, ""); err == nil {
		resp.TaskPid = st.Pid
	}
	return resp, nil
}

func (s *server) Shutdown(ctx context.Context, _ *taskpb.ShutdownRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.runner.Shutdown(ctx)
}

func fromExit(e task.Exit) *taskpb.DeleteResponse {
	return &taskpb.DeleteResponse{Pid: e.Pid, ExitStatus: e.Status, ExitedAt: fromTime(e.At)}
}

// fromTime leaves a time that nobody has set unset.
func fromTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func fromStatus(s task.Status) tasktypes.Status {
	switch s {
	case task.Created:
		return tasktypes.Status_CREATED
	case task.Running:
		return tasktypes.Status_RUNNING
	case task.Stopped:
		return tasktypes.Status_STOPPED
	case task.Paused:
		return tasktypes.Status_PAUSED
	case task.Pausing:
		return tasktypes.Status_PAUSING
	}
	return tasktypes.Status_UNKNOWN
}

// errDecode is what a request that does not decode gets.
func errDecode(what string, err, kind error) error {
	return fmt.Errorf("%s: %v: %w", what, err, kind)
}
