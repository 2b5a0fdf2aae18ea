package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

// kinds are every error that has a name on the wire.
var kinds = []error{
	errdefs.ErrUnknown,
	errdefs.ErrInvalidArgument,
	errdefs.ErrNotFound,
	errdefs.ErrAlreadyExists,
	errdefs.ErrPermissionDenied,
	errdefs.ErrResourceExhausted,
	errdefs.ErrFailedPrecondition,
	errdefs.ErrConflict,
	errdefs.ErrNotModified,
	errdefs.ErrAborted,
	errdefs.ErrOutOfRange,
	errdefs.ErrNotImplemented,
	errdefs.ErrInternal,
	errdefs.ErrUnavailable,
	errdefs.ErrDataLoss,
	errdefs.ErrUnauthenticated,
	context.Canceled,
	context.DeadlineExceeded,
}

// echo is a service of which the tests write the handlers.
type echo struct {
	unary  func(context.Context) error
	stream func(grpc.ServerStream) error
}

func (e echo) register(r grpc.ServiceRegistrar) {
	e.registerAs(r, "test.Echo")
	e.registerAs(r, "test.Known")
}

func (e echo) registerAs(r grpc.ServiceRegistrar, name string) {
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: name,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: "Unary",
			Handler: func(_ any, ctx context.Context, dec func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
				in := new(empty)
				if err := dec(in); err != nil {
					return nil, err
				}
				return intercept(ctx, in, &grpc.UnaryServerInfo{FullMethod: "/" + name + "/Unary"},
					func(ctx context.Context, req any) (any, error) { return req, e.unary(ctx) })
			},
		}},
		Streams: []grpc.StreamDesc{{
			StreamName:    "Stream",
			ServerStreams: true,
			ClientStreams: true,
			Handler:       func(_ any, s grpc.ServerStream) error { return e.stream(s) },
		}},
	}, e)
}

var bidi = &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}

func callUnary(ctx context.Context, c grpc.ClientConnInterface) error {
	return c.Invoke(ctx, "/test.Echo/Unary", &empty{}, &empty{})
}

func callStream(ctx context.Context, c grpc.ClientConnInterface) error {
	s, err := c.NewStream(ctx, bidi, "/test.Echo/Stream")
	if err != nil {
		return err
	}
	if err := s.SendMsg(&empty{}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return s.RecvMsg(&empty{})
}

func TestErrorsKeepTheirKindAcrossTheWire(t *testing.T) {
	var fail error
	conn := rpctest.Pipe(t, echo{
		unary:  func(context.Context) error { return fail },
		stream: func(grpc.ServerStream) error { return fail },
	}.register)
	for _, kind := range kinds {
		// The kind comes last: two of them are known only by the end of the text.
		for _, wrap := range []error{kind, fmt.Errorf("blob x: %w", kind), errors.Join(errors.New("more"), fmt.Errorf("blob x: %w", kind))} {
			fail = wrap
			for name, call := range calls {
				err := call(t.Context(), conn)
				if !errors.Is(err, kind) {
					t.Errorf("%s of %q: got %v, want kind %v", name, wrap, err, kind)
				}
			}
		}
		fail = fmt.Errorf("blob x: %w", kind)
		if err := callUnary(t.Context(), conn); err.Error() != fail.Error() {
			t.Errorf("unary: got text %q, want %q", err, fail)
		}
	}
}

func TestOwnContextErrorsStayContextErrors(t *testing.T) {
	conn := rpctest.Pipe(t, echo{
		unary:  func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		stream: func(s grpc.ServerStream) error { <-s.Context().Done(); return s.Context().Err() },
	}.register)
	for name, call := range calls {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := call(ctx, conn); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s past its deadline: %v", name, err)
		}
		cancel()
		ctx, cancel = context.WithCancel(t.Context())
		context.AfterFunc(ctx, func() {})
		go cancel()
		if err := call(ctx, conn); !errors.Is(err, context.Canceled) {
			t.Errorf("%s canceled: %v", name, err)
		}
	}
}

func TestEndOfStreamIsEOF(t *testing.T) {
	conn := rpctest.Pipe(t, echo{stream: func(grpc.ServerStream) error { return nil }}.register)
	if err := callStream(t.Context(), conn); err != io.EOF {
		t.Errorf("end of stream: got %v, want io.EOF", err)
	}
}

func TestUnknownNamesAreNotImplemented(t *testing.T) {
	conn := rpctest.Pipe(t, echo{}.register)
	for method, want := range map[string]string{
		"/test.Other/Unary": "unknown service test.Other: not implemented",
		"/test.Echo/Other":  "unknown method Other for service test.Echo: not implemented",
	} {
		err := conn.Invoke(t.Context(), method, &empty{}, &empty{})
		if !errdefs.IsNotImplemented(err) || err.Error() != want {
			t.Errorf("%s: got %v, want %s", method, err, want)
		}
	}
}

func TestScopeTravelsInHeaders(t *testing.T) {
	var got namespace.Scope
	var gotErr error
	conn := rpctest.Pipe(t, echo{unary: func(ctx context.Context) error {
		got, gotErr = rpc.Scope(ctx)
		return nil
	}}.register)
	want := namespace.Scope{Name: "k8s.io", Lease: "l1"}
	ctx := rpc.WithScope(t.Context(), namespace.Scope{Name: "other", Lease: "l0"})
	ctx = rpc.WithScope(ctx, want)
	if err := callUnary(ctx, conn); err != nil || gotErr != nil || got != want {
		t.Errorf("got %+v, %v, %v, want %+v", got, gotErr, err, want)
	}
	ctx = rpc.WithScope(ctx, namespace.Scope{Name: "k8s.io"})
	if err := callUnary(ctx, conn); err != nil || gotErr != nil || got.Lease != "" {
		t.Errorf("without a lease: got %+v, %v, %v", got, gotErr, err)
	}
	if err := callUnary(t.Context(), conn); err != nil || !errdefs.IsFailedPrecondition(gotErr) {
		t.Errorf("without a namespace: got %v, %v", gotErr, err)
	}
	ctx = metadata.AppendToOutgoingContext(t.Context(), "containerd-namespace", "first", "containerd-namespace", "second")
	if err := callUnary(ctx, conn); err != nil || got.Name != "first" {
		t.Errorf("repeated header: got %+v, %v", got, err)
	}
	ctx = metadata.AppendToOutgoingContext(t.Context(), "containerd-namespace", "a/b")
	if err := callUnary(ctx, conn); err != nil || !errdefs.IsInvalidArgument(gotErr) {
		t.Errorf("bad namespace: got %v, %v", gotErr, err)
	}
}

func TestDialDoesNotWaitAndCallIsUnavailable(t *testing.T) {
	conn, err := rpc.Dial(filepath.Join(t.TempDir(), "none.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for name, call := range calls {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if err := call(ctx, conn); !errdefs.IsUnavailable(err) {
			t.Errorf("%s: got %v, want unavailable", name, err)
		}
		cancel()
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		if err := call(ctx, conn); !errors.Is(err, context.Canceled) {
			t.Errorf("%s canceled: got %v", name, err)
		}
	}
}
