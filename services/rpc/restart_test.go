package rpc_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

// serve starts a server on a socket; stop ends it at once.
func serve(t *testing.T, socket string, e echo) (stop func()) {
	t.Helper()
	os.Remove(socket)
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := rpc.NewServer("test", slog.New(slog.NewTextHandler(t.Output(), nil)))
	e.register(srv)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			srv.Stop()
			<-done
		}
	}
	t.Cleanup(stop)
	return stop
}

var fine = echo{
	unary:  func(context.Context) error { return nil },
	stream: func(s grpc.ServerStream) error { return s.SendMsg(new(empty)) },
}

func TestCallWaitsForAPeerThatRestarts(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	conn, err := rpc.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for name, call := range calls {
		for _, leftover := range []bool{false, true} {
			stop := serve(t, socket, fine)
			if err := call(t.Context(), conn); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			stop()
			conn.WaitForStateChange(t.Context(), connectivity.Ready)
			if leftover {
				// What a killed process leaves: a socket that refuses.
				lis, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
				if err != nil {
					t.Fatal(err)
				}
				lis.SetUnlinkOnClose(false)
				lis.Close()
			}
			answer := make(chan error, 1)
			go func() { answer <- call(t.Context(), conn) }()
			select {
			case err := <-answer:
				t.Fatalf("%s: did not wait: %v", name, err)
			case <-time.After(50 * time.Millisecond):
			}
			stop = serve(t, socket, fine)
			if err := <-answer; err != nil {
				t.Errorf("%s (leftover %t): %v", name, leftover, err)
			}
			stop()
			conn.WaitForStateChange(t.Context(), connectivity.Ready)
		}
	}
}

// TestCallsDuringRestarts restarts a server under many callers. A call either
// was answered, or was cut while the server had it; none fails for the reason
// that nobody was there.
func TestCallsDuringRestarts(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	conn, err := rpc.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var entered, cut atomic.Int64
	e := echo{unary: func(context.Context) error { entered.Add(1); return nil }}
	stop := serve(t, socket, e)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int64)
	for range 8 {
		go func() {
			var n int64
			for ctx.Err() == nil {
				if err := callUnary(t.Context(), conn); err != nil {
					cut.Add(1)
					if !errdefs.IsUnavailable(err) {
						t.Errorf("call: %v", err)
					}
					continue
				}
				n++
			}
			ended <- n
		}()
	}
	for range 20 {
		before := entered.Load()
		for entered.Load() < before+20 {
			time.Sleep(time.Millisecond)
		}
		stop()
		stop = serve(t, socket, e)
	}
	cancel()
	var answered int64
	for range 8 {
		answered += <-ended
	}
	if max := int64(20 * 8); cut.Load() > max {
		t.Errorf("%d calls were cut, want at most %d: one a caller and restart", cut.Load(), max)
	}
	t.Logf("%d answered, %d cut, %d entered", answered, cut.Load(), entered.Load())
}

func TestDrainEndsWhatWaitsAndLetsOthersFinish(t *testing.T) {
	lis := memoryListener(t)
	srv := rpc.NewServer("contentd", slog.New(slog.NewTextHandler(t.Output(), nil)))
	entered := make(chan string, 2)
	goOn := make(chan struct{})
	echo{unary: func(ctx context.Context) error {
		entered <- "unary"
		select {
		case <-goOn:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}.register(srv)
	registerWait(srv, func(ctx context.Context) error {
		entered <- "wait"
		<-ctx.Done()
		return ctx.Err()
	})
	go srv.Serve(lis)
	conn := dialListener(t, lis)
	unary, wait := make(chan error, 1), make(chan error, 1)
	go func() { unary <- callUnary(t.Context(), conn) }()
	go func() { wait <- callWait(t.Context(), conn) }()
	<-entered
	<-entered
	drained := make(chan bool, 1)
	go func() { drained <- srv.Drain(time.Minute) }()
	if err := <-wait; !errdefs.IsUnavailable(err) {
		t.Errorf("a call that waits: got %v, want unavailable", err)
	}
	select {
	case err := <-unary:
		t.Errorf("a call at work was cut: %v", err)
	case <-drained:
		t.Error("drained before the last call ended")
	default:
	}
	close(goOn)
	if err := <-unary; err != nil {
		t.Errorf("a call at work: %v", err)
	}
	if !<-drained {
		t.Error("Drain says that some calls did not end")
	}
}

func TestDrainCutsWhatDoesNotEnd(t *testing.T) {
	lis := memoryListener(t)
	srv := rpc.NewServer("contentd", slog.New(slog.NewTextHandler(t.Output(), nil)))
	entered, left := make(chan struct{}), make(chan struct{})
	echo{unary: func(ctx context.Context) error {
		close(entered)
		<-ctx.Done()
		close(left)
		return ctx.Err()
	}}.register(srv)
	go srv.Serve(lis)
	conn := dialListener(t, lis)
	answer := make(chan error, 1)
	go func() { answer <- callUnary(t.Context(), conn) }()
	<-entered
	if !srv.Drain(100 * time.Millisecond) {
		t.Error("Drain says that the call did not end")
	}
	select {
	case <-left:
	default:
		t.Error("drained before the handler returned")
	}
	if err := <-answer; !errdefs.IsUnavailable(err) {
		t.Errorf("a call that was cut: got %v, want unavailable", err)
	}
}

func TestTraceIsPassedOnWhereNothingIsExported(t *testing.T) {
	var got trace.SpanContext
	inner := rpctest.Pipe(t, echo{unary: func(ctx context.Context) error {
		got = trace.SpanContextFromContext(ctx)
		return nil
	}}.register)
	outer := rpctest.Pipe(t, echo{unary: func(ctx context.Context) error {
		return callUnary(ctx, inner)
	}}.register)
	want := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1, 2, 3}, SpanID: trace.SpanID{4}, TraceFlags: trace.FlagsSampled,
	})
	if err := callUnary(trace.ContextWithSpanContext(t.Context(), want), outer); err != nil {
		t.Fatal(err)
	}
	if got.TraceID() != want.TraceID() {
		t.Errorf("two calls on: trace %s, want %s", got.TraceID(), want.TraceID())
	}
}

func TestCallsAreCounted(t *testing.T) {
	lis := memoryListener(t)
	srv := rpc.NewServer("contentd", slog.New(slog.DiscardHandler))
	echo{unary: func(context.Context) error { return errors.New("no") }}.register(srv)
	go srv.Serve(lis)
	defer srv.Stop()
	conn := dialListener(t, lis)
	_ = callUnary(t.Context(), conn)
	_ = conn.Invoke(t.Context(), "/made.up/Name", new(empty), new(empty))
	families, err := srv.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var series []string
	for _, f := range families {
		if f.GetName() == "grpc_server_handled_total" {
			for _, m := range f.GetMetric() {
				series = append(series, m.String())
			}
		}
	}
	if len(series) != 1 {
		t.Errorf("series %q, want one: a made up name is not counted", series)
	}
}
