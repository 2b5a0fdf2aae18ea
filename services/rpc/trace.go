package rpc

import (
	"context"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// Where spans are exported, otelgrpc makes one of every call at both ends. It
// costs a tenth of a small call, so that where they are not the headers alone
// are carried, and that only if a caller sent some: a trace does not end in the
// middle of the suite.

// traced says whether spans of this process go anywhere. That is settled before
// a server or a connection is made.
func traced() bool {
	_, exports := otel.GetTracerProvider().(*sdk.TracerProvider)
	return exports
}

func propagator() propagation.TextMapPropagator {
	return propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
}

func serverTracing() []grpc.ServerOption {
	if !traced() {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(otelgrpc.WithPropagators(propagator())))}
}

func clientTracing() []grpc.DialOption {
	if traced() {
		return []grpc.DialOption{grpc.WithStatsHandler(otelgrpc.NewClientHandler(otelgrpc.WithPropagators(propagator())))}
	}
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			return invoke(sendTrace(ctx), method, req, reply, cc, o...)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
			return open(sendTrace(ctx), desc, cc, method, o...)
		}),
	}
}

// receiveTrace puts the trace of an incoming call into its context, where
// otelgrpc has not.
func receiveTrace(ctx context.Context) context.Context {
	if trace.SpanContextFromContext(ctx).IsValid() {
		return ctx
	}
	if in := (incoming{ctx}); in.Get("traceparent") != "" || in.Get("baggage") != "" {
		return propagator().Extract(ctx, in)
	}
	return ctx
}

// sendTrace puts the trace of a context into the headers of an outgoing call.
func sendTrace(ctx context.Context) context.Context {
	if !trace.SpanContextFromContext(ctx).IsValid() && baggage.FromContext(ctx).Len() == 0 {
		return ctx
	}
	md, _ := metadata.FromOutgoingContext(ctx)
	if md = md.Copy(); md == nil {
		md = metadata.MD{}
	}
	propagator().Inject(ctx, outgoing(md))
	return metadata.NewOutgoingContext(ctx, md)
}

// incoming and outgoing are headers as propagators want them.
type (
	incoming struct{ ctx context.Context }
	outgoing metadata.MD
)

func (c incoming) Get(key string) string {
	if v := metadata.ValueFromIncomingContext(c.ctx, key); len(v) > 0 {
		return v[0]
	}
	return ""
}

func (incoming) Set(string, string) {}

func (incoming) Keys() []string { return nil }

func (o outgoing) Get(string) string { return "" }

func (o outgoing) Set(key, value string) { metadata.MD(o).Set(key, value) }

func (o outgoing) Keys() []string { return nil }
