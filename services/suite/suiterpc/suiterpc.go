// Package suiterpc carries a [suite.Describer] across a socket: [Register] puts
// one on a gRPC server and [NewClient] is the same at the other end. It
// translates and does nothing else.
package suiterpc

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	daemonv1 "github.com/gantryd/gantry/proto/gantry/daemon/v1"
	"github.com/gantryd/gantry/services/suite"
)

// Register answers Describe on r from d.
func Register(r grpc.ServiceRegistrar, d suite.Describer) {
	daemonv1.RegisterDaemonServer(r, server{describer: d})
}

type server struct {
	daemonv1.UnsafeDaemonServer
	describer suite.Describer
}

func (s server) Describe(ctx context.Context, _ *daemonv1.DescribeRequest) (*daemonv1.DescribeResponse, error) {
	d, err := s.describer.Describe(ctx)
	if err != nil {
		return nil, err
	}
	resp := &daemonv1.DescribeResponse{
		Daemon:  d.Daemon,
		Version: d.Version,
		Pid:     int64(d.Pid),
		Started: timestamppb.New(d.Started),
		Memory:  d.Memory,
	}
	if o := d.Outbox; o != nil {
		resp.Outbox = &daemonv1.Outbox{Depth: int64(o.Depth), Oldest: toTime(o.Oldest), Away: toTime(o.Away)}
	}
	for _, p := range d.Plugins {
		resp.Plugins = append(resp.Plugins, toPlugin(p))
	}
	return resp, nil
}

// NewClient returns the daemon at the other end of c.
func NewClient(c grpc.ClientConnInterface) suite.Describer {
	return client{daemonv1.NewDaemonClient(c)}
}

type client struct{ c daemonv1.DaemonClient }

func (c client) Describe(ctx context.Context) (suite.Description, error) {
	resp, err := c.c.Describe(ctx, &daemonv1.DescribeRequest{})
	if err != nil {
		return suite.Description{}, err
	}
	d := suite.Description{
		Daemon:  resp.Daemon,
		Version: resp.Version,
		Pid:     int(resp.Pid),
		Started: resp.Started.AsTime(),
		Memory:  resp.Memory,
	}
	if o := resp.Outbox; o != nil {
		d.Outbox = &suite.Outbox{Depth: int(o.Depth), Oldest: fromTime(o.Oldest), Away: fromTime(o.Away)}
	}
	for _, p := range resp.Plugins {
		d.Plugins = append(d.Plugins, fromPlugin(p))
	}
	return d, nil
}

// toTime leaves a time out that is none.
func toTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func fromTime(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func toPlugin(p suite.Plugin) *daemonv1.Plugin {
	return &daemonv1.Plugin{
		Type:         p.Type,
		Id:           p.ID,
		Requires:     p.Requires,
		Platforms:    p.Platforms,
		Exports:      p.Exports,
		Capabilities: p.Capabilities,
		Skip:         p.Skip,
	}
}

func fromPlugin(p *daemonv1.Plugin) suite.Plugin {
	return suite.Plugin{
		Type:         p.Type,
		ID:           p.Id,
		Requires:     p.Requires,
		Platforms:    p.Platforms,
		Exports:      p.Exports,
		Capabilities: p.Capabilities,
		Skip:         p.Skip,
	}
}
