// Package eventrpc carries an [event.Bus] across a socket by containerd's Events
// service: [Register] puts one on a gRPC server, [NewClient] is the same bus at
// the other end, and [ServeShims] is the door that shims knock on.
package eventrpc

import (
	"context"
	"errors"
	"fmt"
	"time"

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
	// A subscription asks in its headers for the events after a cursor, or
	// since a time.
	headerAfter = "gantry-events-after"
	headerSince = "gantry-events-since"

	// headerBegun is in the headers that the server sends when a subscription
	// is in force: the cursor past which it begins. containerd's sends none
	// before the first event.
	headerBegun = "gantry-events-begun"

	// The ends of a gap, in the trailers of a subscription that ends with one.
	trailerGapFrom = "gantry-events-gap-from"
	trailerGapTo   = "gantry-events-gap-to"
)

// Register puts b on a server.
func Register(r grpc.ServiceRegistrar, b event.Bus) {
	eventspb.RegisterEventsServer(r, &server{bus: b})
}

type server struct {
	eventspb.UnsafeEventsServer
	bus  event.Bus
	told told
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
	e, err := Forwarded(env)
	if err != nil {
		return err
	}
	if e.Trace == "" {
		e.Trace = traceparent(ctx)
	}
	return p.Publish(ctx, e)
}

// Forwarded returns the event that somebody forwards who has made it:
// [errdefs.ErrInvalidArgument] without a time.
func Forwarded(env *types.Envelope) (event.Event, error) {
	if err := env.GetTimestamp().CheckValid(); err != nil || env.GetTimestamp().AsTime().IsZero() {
		return event.Event{}, fmt.Errorf("timestamp of the event is missing or wrong: %w", errdefs.ErrInvalidArgument)
	}
	e := fromEnvelope(env)
	e.Epoch, e.Sequence = "", 0
	return e, nil
}

func (s *server) Subscribe(req *eventspb.SubscribeRequest, stream eventspb.Events_SubscribeServer) error {
	err := s.tell(req, stream)
	if gap, ok := errors.AsType[*event.Gap](err); ok {
		stream.SetTrailer(metadata.Pairs(trailerGapFrom, gap.From.String(), trailerGapTo, gap.To.String()))
	}
	return err
}

func (s *server) tell(req *eventspb.SubscribeRequest, stream eventspb.Events_SubscribeServer) error {
	o, err := fromHeaders(stream.Context())
	if err != nil {
		return err
	}
	o.Filters = req.Filters
	var begun event.Cursor
	o.Reached = func(c event.Cursor) { begun = c }
	events, err := s.bus.Subscribe(stream.Context(), o)
	if err != nil {
		return err
	}
	// At once: who waits for it acts next.
	if err := stream.SendHeader(metadata.Pairs(headerBegun, begun.String())); err != nil {
		return err
	}
	for e, err := range events {
		if err != nil {
			return err
		}
		m, err := s.told.of(e)
		if err != nil {
			return fmt.Errorf("event %s: %w", e.ID, err)
		}
		if err := stream.SendMsg(m); err != nil {
			return err
		}
	}
	return nil
}

// fromHeaders returns where a subscription begins.
func fromHeaders(ctx context.Context) (o event.SubscribeOptions, err error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(headerAfter); len(v) > 0 {
		c, err := event.ParseCursor(v[0])
		if err != nil {
			return o, err
		}
		o.After = &c
	}
	if v := md.Get(headerSince); len(v) > 0 {
		if o.Since, err = time.Parse(time.RFC3339Nano, v[0]); err != nil {
			return o, fmt.Errorf("time %.100q: %w", v[0], errdefs.ErrInvalidArgument)
		}
	}
	return o, nil
}

// withHeaders is the inverse.
func withHeaders(ctx context.Context, o event.SubscribeOptions) context.Context {
	if o.After != nil {
		ctx = metadata.AppendToOutgoingContext(ctx, headerAfter, o.After.String())
	}
	if !o.Since.IsZero() {
		ctx = metadata.AppendToOutgoingContext(ctx, headerSince, o.Since.UTC().Format(time.RFC3339Nano))
	}
	return ctx
}

// fromTrailers returns the gap that a subscription ended with, if it did.
func fromTrailers(md metadata.MD) *event.Gap {
	from, to := md.Get(trailerGapFrom), md.Get(trailerGapTo)
	if len(from) == 0 || len(to) == 0 {
		return nil
	}
	var g event.Gap
	var err error
	if g.From, err = event.ParseCursor(from[0]); err != nil {
		return nil
	}
	if g.To, err = event.ParseCursor(to[0]); err != nil {
		return nil
	}
	return &g
}

func traceparent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier.Get("traceparent")
}
