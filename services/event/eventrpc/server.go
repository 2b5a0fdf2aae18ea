// Package eventrpc carries an [event.Bus] across a socket by containerd's Events
// service: [Register] puts one on a gRPC server, [NewClient] is the same bus at
// the other end, and [ServeShims] is the door that shims knock on.
package eventrpc

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	eventspb "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/rpc"
)

const (
	// headerAfter is the cursor of a subscription: "<epoch>/<sequence>".
	headerAfter = "gantry-events-after"

	// headerBegun is in the headers that the server sends when a subscription
	// is in force. containerd's sends none before the first event.
	headerBegun = "gantry-events-begun"
)

// Register puts b on a server.
func Register(r grpc.ServiceRegistrar, b event.Bus) {
	eventspb.RegisterEventsServer(r, &server{bus: b})
}

type server struct {
	eventspb.UnsafeEventsServer
	bus event.Bus
}

func (s *server) Publish(ctx context.Context, req *eventspb.PublishRequest) (*emptypb.Empty, error) {
	scope, err := rpc.Scope(ctx)
	if err != nil {
		return nil, err
	}
	e := event.Event{Namespace: scope.Name, Topic: req.Topic, Trace: traceparent(ctx)}
	setPayload(&e, req.Event)
	e.Subject = e.About()
	return &emptypb.Empty{}, s.bus.Publish(ctx, e)
}

func (s *server) Forward(ctx context.Context, req *eventspb.ForwardRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, forward(ctx, s.bus, req.Envelope)
}

func forward(ctx context.Context, p event.Publisher, env *types.Envelope) error {
	if err := env.GetTimestamp().CheckValid(); err != nil || env.GetTimestamp().AsTime().IsZero() {
		return fmt.Errorf("timestamp of the event is missing or wrong: %w", errdefs.ErrInvalidArgument)
	}
	e := fromEnvelope(env)
	e.Epoch, e.Sequence = "", 0
	if e.Trace == "" {
		e.Trace = traceparent(ctx)
	}
	return p.Publish(ctx, e)
}

func (s *server) Subscribe(req *eventspb.SubscribeRequest, stream eventspb.Events_SubscribeServer) error {
	after, err := cursor(stream.Context())
	if err != nil {
		return err
	}
	events, err := s.bus.Subscribe(stream.Context(), event.SubscribeOptions{Filters: req.Filters, After: after})
	if err != nil {
		return err
	}
	// At once: who waits for it acts next.
	if err := stream.SendHeader(metadata.Pairs(headerBegun, "1")); err != nil {
		return err
	}
	for e, err := range events {
		if err != nil {
			return err
		}
		env, err := toEnvelope(e)
		if err != nil {
			return fmt.Errorf("event %s: %w", e.ID, err)
		}
		if err := stream.Send(env); err != nil {
			return err
		}
	}
	return nil
}

func cursor(ctx context.Context) (*event.Cursor, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	v := md.Get(headerAfter)
	if len(v) == 0 {
		return nil, nil
	}
	epoch, sequence, _ := strings.Cut(v[0], "/")
	n, err := strconv.ParseUint(sequence, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("cursor %q: %w", v[0], errdefs.ErrInvalidArgument)
	}
	epoch, err = url.QueryUnescape(epoch)
	if err != nil {
		return nil, fmt.Errorf("cursor %q: %w", v[0], errdefs.ErrInvalidArgument)
	}
	return &event.Cursor{Epoch: epoch, Sequence: n}, nil
}

func withCursor(ctx context.Context, c *event.Cursor) context.Context {
	if c == nil {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, headerAfter, fmt.Sprintf("%s/%d", url.QueryEscape(c.Epoch), c.Sequence))
}

func traceparent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier.Get("traceparent")
}
