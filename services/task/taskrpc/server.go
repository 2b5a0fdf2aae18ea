// Package taskrpc carries [task.Services] across a socket in containerd's Tasks
// service: [Register] puts one on a gRPC server and [NewClient] is the same at
// the other end. It translates and does nothing else.
package taskrpc

import (
	"context"
	"fmt"

	api "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gantryd/gantry/services/mount/mountrpc"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/task"
)

// Register puts s on a server.
func Register(r grpc.ServiceRegistrar, s task.Services) {
	api.RegisterTasksServer(r, &server{services: s})
}

type server struct {
	api.UnsafeTasksServer // a method we forget must not compile
	services              task.Services
}

func (s *server) service(ctx context.Context) (task.Service, error) {
	scope, err := rpc.Scope(ctx)
	if err != nil {
		return nil, err
	}
	return s.services.In(scope), nil
}

func (s *server) Create(ctx context.Context, req *api.CreateTaskRequest) (*api.CreateTaskResponse, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	if req.TaskApiAddress != "" {
		return nil, fmt.Errorf("task API address: %w", errdefs.ErrNotImplemented)
	}
	pid, err := service.Create(ctx, task.CreateRequest{
		ContainerID: req.ContainerID,
		Rootfs:      mountrpc.From(req.Rootfs),
		IO:          task.IO{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, Terminal: req.Terminal},
		Checkpoint:  fromDescriptor(req.Checkpoint),
		Options:     fromAny(req.Options),
		RuntimePath: req.RuntimePath,
	})
	if err != nil {
		return nil, err
	}
	return &api.CreateTaskResponse{ContainerID: req.ContainerID, Pid: pid}, nil
}

func (s *server) Start(ctx context.Context, req *api.StartRequest) (*api.StartResponse, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	pid, err := service.Start(ctx, req.ContainerID, req.ExecID)
	if err != nil {
		return nil, err
	}
	return &api.StartResponse{Pid: pid}, nil
}

func (s *server) Delete(ctx context.Context, req *api.DeleteTaskRequest) (*api.DeleteResponse, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	e, err := service.Delete(ctx, req.ContainerID)
	if err != nil {
		return nil, err
	}
	return toDeleted(req.ContainerID, e), nil
}

func (s *server) DeleteProcess(ctx context.Context, req *api.DeleteProcessRequest) (*api.DeleteResponse, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	e, err := service.DeleteProcess(ctx, req.ContainerID, req.ExecID)
	if err != nil {
		return nil, err
	}
	return toDeleted(req.ExecID, e), nil
}

func (s *server) Get(ctx context.Context, req *api.GetRequest) (*api.GetResponse, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	p, err := service.Get(ctx, req.ContainerID, req.ExecID)
	if err != nil {
		return nil, err
	}
	return &api.GetResponse{Process: toProcess(p)}, nil
}

func (s *server) List(ctx context.Context, _ *api.ListTasksRequest) (*api.ListTasksResponse, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	all, err := service.List(ctx)
	if err != nil {
		return nil, err
	}
	resp := &api.ListTasksResponse{Tasks: make([]*tasktypes.Process, 0, len(all))}
	for _, p := range all {
		resp.Tasks = append(resp.Tasks, toProcess(p))
	}
	return resp, nil
}

func (s *server) Kill(ctx context.Context, req *api.KillRequest) (*emptypb.Empty, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	return empty(service.Kill(ctx, req.ContainerID, req.ExecID, req.Signal, req.All))
}

func (s *server) Exec(ctx context.Context, req *api.ExecProcessRequest) (*emptypb.Empty, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	if req.Spec == nil {
		return nil, fmt.Errorf("exec spec must be set: %w", errdefs.ErrInvalidArgument)
	}
	return empty(service.Exec(ctx, task.ExecRequest{
		ContainerID: req.ContainerID,
		ExecID:      req.ExecID,
		Spec:        *fromAny(req.Spec),
		IO:          task.IO{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, Terminal: req.Terminal},
	}))
}

func (s *server) ResizePty(ctx context.Context, req *api.ResizePtyRequest) (*emptypb.Empty, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	return empty(service.ResizePty(ctx, req.ContainerID, req.ExecID, req.Width, req.Height))
}

func (s *server) CloseIO(ctx context.Context, req *api.CloseIORequest) (*emptypb.Empty, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	if !req.Stdin { // nothing else can be closed
		_, err := service.Get(ctx, req.ContainerID, req.ExecID)
		return empty(err)
	}
	return empty(service.CloseIO(ctx, req.ContainerID, req.ExecID))
}

func (s *server) Pause(ctx context.Context, req *api.PauseTaskRequest) (*emptypb.Empty, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	return empty(service.Pause(ctx, req.ContainerID))
}

func (s *server) Resume(ctx context.Context, req *api.ResumeTaskRequest) (*emptypb.Empty, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	return empty(service.Resume(ctx, req.ContainerID))
}

func (s *server) ListPids(ctx context.Context, req *api.ListPidsRequest) (*api.ListPidsResponse, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	all, err := service.Pids(ctx, req.ContainerID)
	if err != nil {
		return nil, err
	}
	resp := &api.ListPidsResponse{}
	for _, p := range all {
		resp.Processes = append(resp.Processes, &tasktypes.ProcessInfo{Pid: p.Pid, Info: toAny(p.Info)})
	}
	return resp, nil
}

func (s *server) Checkpoint(ctx context.Context, req *api.CheckpointTaskRequest) (*api.CheckpointTaskResponse, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	all, err := service.Checkpoint(ctx, req.ContainerID, fromAny(req.Options))
	if err != nil {
		return nil, err
	}
	resp := &api.CheckpointTaskResponse{}
	for _, d := range all {
		resp.Descriptors = append(resp.Descriptors, toDescriptor(&d))
	}
	return resp, nil
}

func (s *server) Update(ctx context.Context, req *api.UpdateTaskRequest) (*emptypb.Empty, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	if req.Resources == nil {
		return nil, fmt.Errorf("resources must be set: %w", errdefs.ErrInvalidArgument)
	}
	return empty(service.Update(ctx, req.ContainerID, *fromAny(req.Resources), req.Annotations))
}

func (s *server) Metrics(ctx context.Context, req *api.MetricsRequest) (*api.MetricsResponse, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	all, err := service.Metrics(ctx, req.Filters...)
	if err != nil {
		return nil, err
	}
	resp := &api.MetricsResponse{}
	for _, m := range all {
		resp.Metrics = append(resp.Metrics, &types.Metric{ID: m.ID, Timestamp: toTime(m.Time), Data: toAny(m.Data)})
	}
	return resp, nil
}

func (s *server) Wait(ctx context.Context, req *api.WaitRequest) (*api.WaitResponse, error) {
	service, err := s.service(ctx)
	if err != nil {
		return nil, err
	}
	e, err := service.Wait(ctx, req.ContainerID, req.ExecID)
	if err != nil {
		return nil, err
	}
	return &api.WaitResponse{ExitStatus: e.Status, ExitedAt: toTime(e.At)}, nil
}

func empty(err error) (*emptypb.Empty, error) {
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}
