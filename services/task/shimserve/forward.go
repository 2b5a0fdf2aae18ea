package shimserve

import (
	"context"
	"fmt"
	"net"
	"strings"

	"github.com/containerd/containerd/api/events"
	eventspb "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/mount/mountrpc"
	"github.com/gantryd/gantry/services/runner"
)

// namespaceKey is where containerd looks for the namespace of a ttrpc call.
const namespaceKey = "containerd-namespace-ttrpc"

// A Forwarder tells events to the daemon that collects them, over one
// connection, which is made again when it breaks. It is used by one goroutine.
type Forwarder struct {
	path, namespace string
	client          *ttrpc.Client
}

var _ runner.Publisher = (*Forwarder)(nil)

// NewForwarder dials when it is used first. The address is a path, or
// "unix://" and one.
func NewForwarder(address, namespace string) *Forwarder {
	return &Forwarder{path: strings.TrimPrefix(address, "unix://"), namespace: namespace}
}

// Publish implements runner.Publisher. The bytes of an event are the same
// every time.
func (f *Forwarder) Publish(ctx context.Context, e runner.Event) error {
	envelope, err := Envelope(f.namespace, e)
	if err != nil {
		return err
	}
	if f.client == nil {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", f.path)
		if err != nil {
			return fmt.Errorf("events: %w", err)
		}
		f.client = ttrpc.NewClient(conn)
	}
	ctx = ttrpc.WithMetadata(ctx, ttrpc.MD{namespaceKey: []string{f.namespace}})
	_, err = eventspb.NewTTRPCEventsClient(f.client).Forward(ctx, &eventspb.ForwardRequest{Envelope: envelope})
	if err = errgrpc.ToNative(err); err != nil && !errdefs.IsInvalidArgument(err) {
		f.Close() // it may be the connection
	}
	return err
}

// Close closes the connection.
func (f *Forwarder) Close() {
	if f.client != nil {
		f.client.Close()
		f.client = nil
	}
}

// Envelope returns an event as a Forwarder tells it.
func Envelope(namespace string, e runner.Event) (*types.Envelope, error) {
	message, err := fromEvent(e)
	if err != nil {
		return nil, err
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
	if err != nil {
		return nil, errDecode("event "+string(e.Topic), err, errdefs.ErrInvalidArgument)
	}
	return &types.Envelope{
		Timestamp: timestamppb.New(e.Time),
		Namespace: namespace,
		Topic:     string(e.Topic),
		Event:     &anypb.Any{TypeUrl: string(message.ProtoReflect().Descriptor().FullName()), Value: value},
	}, nil
}

func fromEvent(e runner.Event) (proto.Message, error) {
	switch e.Topic {
	case runner.Created:
		return &events.TaskCreate{
			ContainerID: e.ContainerID,
			Bundle:      e.Bundle,
			Rootfs:      mountrpc.To(e.Rootfs),
			IO:          &events.TaskIO{Stdin: e.IO.Stdin, Stdout: e.IO.Stdout, Stderr: e.IO.Stderr, Terminal: e.IO.Terminal},
			Pid:         e.Pid,
		}, nil
	case runner.Started:
		return &events.TaskStart{ContainerID: e.ContainerID, Pid: e.Pid}, nil
	case runner.OutOfMemory:
		return &events.TaskOOM{ContainerID: e.ContainerID}, nil
	case runner.Exited:
		id := e.ExecID
		if id == "" {
			id = e.ContainerID // containerd's word for the first process
		}
		return &events.TaskExit{ContainerID: e.ContainerID, ID: id, Pid: e.Pid, ExitStatus: e.Exit.Status, ExitedAt: fromTime(e.Exit.At)}, nil
	case runner.Deleted:
		return &events.TaskDelete{ContainerID: e.ContainerID, Pid: e.Pid, ExitStatus: e.Exit.Status, ExitedAt: fromTime(e.Exit.At)}, nil
	case runner.ExecAdded:
		return &events.TaskExecAdded{ContainerID: e.ContainerID, ExecID: e.ExecID}, nil
	case runner.ExecStarted:
		return &events.TaskExecStarted{ContainerID: e.ContainerID, ExecID: e.ExecID, Pid: e.Pid}, nil
	case runner.Paused:
		return &events.TaskPaused{ContainerID: e.ContainerID}, nil
	case runner.Resumed:
		return &events.TaskResumed{ContainerID: e.ContainerID}, nil
	}
	return nil, fmt.Errorf("event %q is not known: %w", e.Topic, errdefs.ErrInvalidArgument)
}
