package eventrpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	eventspb "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
)

// NewClient returns the bus at the other end of conn.
func NewClient(conn grpc.ClientConnInterface) event.Bus {
	return &client{c: eventspb.NewEventsClient(conn)}
}

type client struct{ c eventspb.EventsClient }

// Publish implements event.Publisher. An event without a time goes by
// containerd's Publish, which has no place for an id.
func (c *client) Publish(ctx context.Context, e event.Event) error {
	env, err := toEnvelope(e)
	if err != nil {
		return fmt.Errorf("event %s: %w: %w", e.Topic, err, errdefs.ErrInvalidArgument)
	}
	if env.Timestamp == nil {
		_, err = c.c.Publish(rpc.WithScope(ctx, namespace.Scope{Name: e.Namespace}), &eventspb.PublishRequest{Topic: e.Topic, Event: env.Event})
		return err
	}
	_, err = c.c.Forward(ctx, &eventspb.ForwardRequest{Envelope: env})
	return err
}

// Subscribe implements event.Subscriber. On a server that does not say when a
// subscription begins, as containerd's, it waits for the first event.
func (c *client) Subscribe(ctx context.Context, o event.SubscribeOptions) (iter.Seq2[event.Event, error], error) {
	callerCtx := ctx
	ctx, cancel := context.WithCancel(withHeaders(ctx, o))
	stream, err := c.c.Subscribe(ctx, &eventspb.SubscribeRequest{Filters: o.Filters})
	if err != nil {
		cancel()
		return nil, err
	}
	var first *types.Envelope
	md, err := stream.Header()
	begun := md.Get(headerBegun)
	if err != nil || len(begun) == 0 {
		if first, err = stream.Recv(); err != nil {
			cancel()
			return nil, ended(callerCtx, stream, err)
		}
	} else if c, err := event.ParseCursor(begun[0]); err == nil && o.Reached != nil {
		o.Reached(c)
	}
	return func(yield func(event.Event, error) bool) {
		defer cancel()
		if first != nil && !yield(fromEnvelope(first), nil) {
			return
		}
		for {
			env, err := stream.Recv()
			if err != nil {
				yield(event.Event{}, ended(callerCtx, stream, err))
				return
			}
			if !yield(fromEnvelope(env), nil) {
				return
			}
		}
	}, nil
}

// ended says why a subscription ended.
func ended(ctx context.Context, stream grpc.ClientStream, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if gap := fromTrailers(stream.Trailer()); gap != nil {
		return gap
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the bus ended the subscription: %w", errdefs.ErrUnavailable)
	}
	return err
}
