package shimrpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gantryd/gantry/services/mount/mountrpc"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

// The messages of both versions are the same; only the service's name differs.
const (
	serviceV2 = "containerd.task.v2.Task"
	serviceV3 = "containerd.task.v3.Task"
)

// namespaceHeader is where a shim looks for the namespace of a call.
const namespaceHeader = "containerd-namespace-ttrpc"

// writeTime is how long a shim may leave a request unread in a socket that is
// full. The connection is given up then: what follows half a request is lost.
const writeTime = 2 * time.Second

// client is one connection.
type client struct {
	c         *ttrpc.Client
	namespace string
	v2        atomic.Bool // the shim was found to know version 2 only
	done      chan struct{}
}

var _ task.Shim = (*client)(nil)

func newClient(conn net.Conn, namespace string, version int) *client {
	c := &client{namespace: namespace, done: make(chan struct{})}
	c.v2.Store(version < 3)
	c.c = ttrpc.NewClient(impatient{conn}, ttrpc.WithOnClose(func() { close(c.done) }))
	return c
}

// impatient is a connection on which a write does not wait for ever.
type impatient struct{ net.Conn }

func (i impatient) Write(b []byte) (int, error) {
	if err := i.Conn.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return 0, err
	}
	n, err := i.Conn.Write(b)
	if err != nil {
		i.Conn.Close()
	}
	return n, err
}

func (c *client) Done() <-chan struct{} { return c.done }

func (c *client) Close() error {
	err := c.c.Close()
	<-c.done
	return err
}

// call makes one call. Both ends of a shim's life are found out by its error
// alone, so the kinds matter: see [task.Shim].
func (c *client) call(ctx context.Context, method string, req, resp proto.Message) error {
	md := ttrpc.MD{}
	propagation.TraceContext{}.Inject(ctx, carrier(md))
	md.Set(namespaceHeader, c.namespace)
	ctx = ttrpc.WithMetadata(ctx, md)
	service := serviceV3
	if c.v2.Load() {
		service = serviceV2
	}
	return c.kind(ctx, c.c.Call(ctx, service, method, req, resp))
}

// callFirst is call for the methods that open a conversation: a shim that does
// not know version 3 is asked in version 2, and from then on.
func (c *client) callFirst(ctx context.Context, method string, req, resp proto.Message) error {
	err := c.call(ctx, method, req, resp)
	if !errdefs.IsNotImplemented(err) || c.v2.Load() {
		return err
	}
	c.v2.Store(true)
	second := c.call(ctx, method, req, resp)
	if errdefs.IsNotImplemented(second) {
		c.v2.Store(false)
		return err
	}
	return second
}

func (c *client) kind(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var tooLarge *ttrpc.OversizedMessageErr
	var network net.Error
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &tooLarge):
		return fmt.Errorf("request of %d bytes is larger than a shim takes (%d): %w",
			tooLarge.RejectedLength(), tooLarge.MaximumLength(), errdefs.ErrResourceExhausted)
	case errors.Is(err, ttrpc.ErrClosed), errors.Is(err, ttrpc.ErrStreamClosed),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET), errors.As(err, &network):
		c.Close() // so that Done says it too
		return fmt.Errorf("shim: connection is gone: %w", errdefs.ErrUnavailable)
	}
	if s, ok := status.FromError(err); ok && s.Code() == codes.DeadlineExceeded && ctx.Err() != nil {
		return ctx.Err()
	}
	return errgrpc.ToNative(err)
}

// carrier puts the trace context into ttrpc's metadata.
type carrier ttrpc.MD

func (c carrier) Get(key string) string {
	if v, ok := ttrpc.MD(c).Get(key); ok && len(v) > 0 {
		return v[0]
	}
	return ""
}

func (c carrier) Set(key, value string) { ttrpc.MD(c).Set(key, value) }

func (c carrier) Keys() []string {
	var all []string
	for k := range c {
		all = append(all, k)
	}
	return all
}

func (c *client) Create(ctx context.Context, r task.ShimCreate) (uint32, error) {
	var resp api.CreateTaskResponse
	err := c.callFirst(ctx, "Create", &api.CreateTaskRequest{
		ID:         r.ID,
		Bundle:     r.Bundle,
		Rootfs:     mountrpc.To(r.Rootfs),
		Terminal:   r.IO.Terminal,
		Stdin:      r.IO.Stdin,
		Stdout:     r.IO.Stdout,
		Stderr:     r.IO.Stderr,
		Checkpoint: r.Checkpoint,
		Options:    toAny(r.Options),
	}, &resp)
	return resp.Pid, err
}

func (c *client) Delete(ctx context.Context, id string) (task.Exit, error) {
	return c.DeleteProcess(ctx, id, "")
}

func (c *client) DeleteProcess(ctx context.Context, id, exec string) (task.Exit, error) {
	var resp api.DeleteResponse
	if err := c.call(ctx, "Delete", &api.DeleteRequest{ID: id, ExecID: exec}, &resp); err != nil {
		return task.Exit{}, err
	}
	return task.Exit{Pid: resp.Pid, Status: resp.ExitStatus, At: fromTime(resp.ExitedAt)}, nil
}

func (c *client) Get(ctx context.Context, id, exec string) (task.Process, error) {
	var resp api.StateResponse
	if err := c.call(ctx, "State", &api.StateRequest{ID: id, ExecID: exec}, &resp); err != nil {
		return task.Process{}, err
	}
	return fromState(&resp, id, exec), nil
}

func (c *client) Pause(ctx context.Context, id string) error {
	return c.call(ctx, "Pause", &api.PauseRequest{ID: id}, &emptypb.Empty{})
}

func (c *client) Resume(ctx context.Context, id string) error {
	return c.call(ctx, "Resume", &api.ResumeRequest{ID: id}, &emptypb.Empty{})
}

func (c *client) Pids(ctx context.Context, id string) ([]task.ProcessInfo, error) {
	var resp api.PidsResponse
	if err := c.call(ctx, "Pids", &api.PidsRequest{ID: id}, &resp); err != nil {
		return nil, err
	}
	var all []task.ProcessInfo
	for _, p := range resp.Processes {
		all = append(all, task.ProcessInfo{Pid: p.GetPid(), Info: fromAny(p.GetInfo())})
	}
	return all, nil
}

func (c *client) Update(ctx context.Context, id string, resources typed.Value, annotations map[string]string) error {
	req := &api.UpdateTaskRequest{ID: id, Resources: toAny(&resources), Annotations: annotations}
	return c.call(ctx, "Update", req, &emptypb.Empty{})
}

func (c *client) Checkpoint(ctx context.Context, id, path string, options *typed.Value) error {
	req := &api.CheckpointTaskRequest{ID: id, Path: path, Options: toAny(options)}
	return c.call(ctx, "Checkpoint", req, &emptypb.Empty{})
}

func (c *client) Stats(ctx context.Context, id string) (*typed.Value, error) {
	var resp api.StatsResponse
	if err := c.call(ctx, "Stats", &api.StatsRequest{ID: id}, &resp); err != nil {
		return nil, err
	}
	return fromAny(resp.Stats), nil
}

func (c *client) Exec(ctx context.Context, r task.ExecRequest) error {
	return c.call(ctx, "Exec", &api.ExecProcessRequest{
		ID:       r.ContainerID,
		ExecID:   r.ExecID,
		Terminal: r.IO.Terminal,
		Stdin:    r.IO.Stdin,
		Stdout:   r.IO.Stdout,
		Stderr:   r.IO.Stderr,
		Spec:     toAny(&r.Spec),
	}, &emptypb.Empty{})
}

func (c *client) Start(ctx context.Context, id, exec string) (uint32, error) {
	var resp api.StartResponse
	err := c.call(ctx, "Start", &api.StartRequest{ID: id, ExecID: exec}, &resp)
	return resp.Pid, err
}

func (c *client) Wait(ctx context.Context, id, exec string) (task.Exit, error) {
	var resp api.WaitResponse
	if err := c.call(ctx, "Wait", &api.WaitRequest{ID: id, ExecID: exec}, &resp); err != nil {
		return task.Exit{}, err
	}
	return task.Exit{Status: resp.ExitStatus, At: fromTime(resp.ExitedAt)}, nil
}

func (c *client) Kill(ctx context.Context, id, exec string, signal uint32, all bool) error {
	return c.call(ctx, "Kill", &api.KillRequest{ID: id, ExecID: exec, Signal: signal, All: all}, &emptypb.Empty{})
}

func (c *client) ResizePty(ctx context.Context, id, exec string, width, height uint32) error {
	return c.call(ctx, "ResizePty", &api.ResizePtyRequest{ID: id, ExecID: exec, Width: width, Height: height}, &emptypb.Empty{})
}

func (c *client) CloseIO(ctx context.Context, id, exec string) error {
	return c.call(ctx, "CloseIO", &api.CloseIORequest{ID: id, ExecID: exec, Stdin: true}, &emptypb.Empty{})
}

func (c *client) Info(ctx context.Context, id string) (task.ShimInfo, error) {
	var resp api.ConnectResponse
	if err := c.callFirst(ctx, "Connect", &api.ConnectRequest{ID: id}, &resp); err != nil {
		return task.ShimInfo{}, err
	}
	return task.ShimInfo{ShimPid: resp.ShimPid, TaskPid: resp.TaskPid, Version: resp.Version}, nil
}

// Shutdown may find the connection closed before the answer: it did its work.
func (c *client) Shutdown(ctx context.Context, id string) error {
	err := c.call(ctx, "Shutdown", &api.ShutdownRequest{ID: id}, &emptypb.Empty{})
	select {
	case <-c.done:
		return nil
	default:
		return err
	}
}
