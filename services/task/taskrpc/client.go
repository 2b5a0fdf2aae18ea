package taskrpc

import (
	"context"

	api "github.com/containerd/containerd/api/services/tasks/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/mount/mountrpc"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

// NewClient returns the services at the other end of conn.
func NewClient(conn grpc.ClientConnInterface) task.Services {
	return services{api.NewTasksClient(conn)}
}

type services struct{ c api.TasksClient }

func (s services) In(scope namespace.Scope) task.Service { return client{c: s.c, scope: scope} }

type client struct {
	c     api.TasksClient
	scope namespace.Scope
}

func (c client) ctx(ctx context.Context) context.Context { return rpc.WithScope(ctx, c.scope) }

func (c client) Create(ctx context.Context, r task.CreateRequest) (uint32, error) {
	resp, err := c.c.Create(c.ctx(ctx), &api.CreateTaskRequest{
		ContainerID: r.ContainerID,
		Rootfs:      mountrpc.To(r.Rootfs),
		Stdin:       r.IO.Stdin,
		Stdout:      r.IO.Stdout,
		Stderr:      r.IO.Stderr,
		Terminal:    r.IO.Terminal,
		Checkpoint:  toDescriptor(r.Checkpoint),
		Options:     toAny(r.Options),
		RuntimePath: r.RuntimePath,
	})
	return resp.GetPid(), err
}

func (c client) Delete(ctx context.Context, id string) (task.Exit, error) {
	resp, err := c.c.Delete(c.ctx(ctx), &api.DeleteTaskRequest{ContainerID: id})
	return fromDeleted(resp), err
}

func (c client) Get(ctx context.Context, id, exec string) (task.Process, error) {
	resp, err := c.c.Get(c.ctx(ctx), &api.GetRequest{ContainerID: id, ExecID: exec})
	if err != nil {
		return task.Process{}, err
	}
	return fromProcess(resp.Process, id, exec), nil
}

func (c client) List(ctx context.Context) ([]task.Process, error) {
	resp, err := c.c.List(c.ctx(ctx), &api.ListTasksRequest{})
	if err != nil {
		return nil, err
	}
	var all []task.Process
	for _, p := range resp.Tasks {
		all = append(all, fromProcess(p, p.GetID(), ""))
	}
	return all, nil
}

func (c client) Exec(ctx context.Context, r task.ExecRequest) error {
	_, err := c.c.Exec(c.ctx(ctx), &api.ExecProcessRequest{
		ContainerID: r.ContainerID,
		ExecID:      r.ExecID,
		Spec:        toAny(&r.Spec),
		Stdin:       r.IO.Stdin,
		Stdout:      r.IO.Stdout,
		Stderr:      r.IO.Stderr,
		Terminal:    r.IO.Terminal,
	})
	return err
}

func (c client) Start(ctx context.Context, id, exec string) (uint32, error) {
	resp, err := c.c.Start(c.ctx(ctx), &api.StartRequest{ContainerID: id, ExecID: exec})
	return resp.GetPid(), err
}

func (c client) Wait(ctx context.Context, id, exec string) (task.Exit, error) {
	resp, err := c.c.Wait(c.ctx(ctx), &api.WaitRequest{ContainerID: id, ExecID: exec})
	return task.Exit{Status: resp.GetExitStatus(), At: fromTime(resp.GetExitedAt())}, err
}

func (c client) Kill(ctx context.Context, id, exec string, signal uint32, all bool) error {
	_, err := c.c.Kill(c.ctx(ctx), &api.KillRequest{ContainerID: id, ExecID: exec, Signal: signal, All: all})
	return err
}

func (c client) DeleteProcess(ctx context.Context, id, exec string) (task.Exit, error) {
	resp, err := c.c.DeleteProcess(c.ctx(ctx), &api.DeleteProcessRequest{ContainerID: id, ExecID: exec})
	return fromDeleted(resp), err
}

func (c client) ResizePty(ctx context.Context, id, exec string, width, height uint32) error {
	_, err := c.c.ResizePty(c.ctx(ctx), &api.ResizePtyRequest{ContainerID: id, ExecID: exec, Width: width, Height: height})
	return err
}

func (c client) CloseIO(ctx context.Context, id, exec string) error {
	_, err := c.c.CloseIO(c.ctx(ctx), &api.CloseIORequest{ContainerID: id, ExecID: exec, Stdin: true})
	return err
}

func (c client) Pause(ctx context.Context, id string) error {
	_, err := c.c.Pause(c.ctx(ctx), &api.PauseTaskRequest{ContainerID: id})
	return err
}

func (c client) Resume(ctx context.Context, id string) error {
	_, err := c.c.Resume(c.ctx(ctx), &api.ResumeTaskRequest{ContainerID: id})
	return err
}

func (c client) Pids(ctx context.Context, id string) ([]task.ProcessInfo, error) {
	resp, err := c.c.ListPids(c.ctx(ctx), &api.ListPidsRequest{ContainerID: id})
	if err != nil {
		return nil, err
	}
	var all []task.ProcessInfo
	for _, p := range resp.Processes {
		all = append(all, task.ProcessInfo{Pid: p.GetPid(), Info: fromAny(p.GetInfo())})
	}
	return all, nil
}

func (c client) Update(ctx context.Context, id string, resources typed.Value, annotations map[string]string) error {
	_, err := c.c.Update(c.ctx(ctx), &api.UpdateTaskRequest{ContainerID: id, Resources: toAny(&resources), Annotations: annotations})
	return err
}

func (c client) Checkpoint(ctx context.Context, id string, options *typed.Value) ([]ocispec.Descriptor, error) {
	resp, err := c.c.Checkpoint(c.ctx(ctx), &api.CheckpointTaskRequest{ContainerID: id, Options: toAny(options)})
	if err != nil {
		return nil, err
	}
	var all []ocispec.Descriptor
	for _, d := range resp.Descriptors {
		all = append(all, *fromDescriptor(d))
	}
	return all, nil
}

func (c client) Metrics(ctx context.Context, filters ...string) ([]task.Metric, error) {
	resp, err := c.c.Metrics(c.ctx(ctx), &api.MetricsRequest{Filters: filters})
	if err != nil {
		return nil, err
	}
	var all []task.Metric
	for _, m := range resp.Metrics {
		all = append(all, task.Metric{ID: m.GetID(), Time: fromTime(m.GetTimestamp()), Data: fromAny(m.GetData())})
	}
	return all, nil
}
