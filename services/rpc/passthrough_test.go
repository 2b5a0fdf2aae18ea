package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/gantryd/gantry/services/rpc"
)

type blob = wrapperspb.BytesValue

// A door is a gateway before a backend, and a client as strangers write them.
type door struct {
	socket string // of the backend
	client *grpc.ClientConn
}

func openDoor(t testing.TB, hold time.Duration) door {
	t.Helper()
	if err := know(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	d := door{socket: filepath.Join(dir, "backend")}
	backend, err := rpc.DialBackend("backend", d.socket, hold)
	if err != nil {
		t.Fatal(err)
	}
	srv := rpc.NewServer("gatewayd", slog.New(slog.NewTextHandler(t.Output(), nil)), rpc.PassThrough(
		func(service string) *rpc.Backend {
			if service == "test.Echo" || service == "test.Known" || service == "containerd.services.content.v1.Content" {
				return backend
			}
			return nil
		},
		func(daemon, method string) error {
			if strings.HasSuffix(method, "/Write") {
				return fmt.Errorf("%s is down: %w", daemon, errdefs.ErrAborted)
			}
			return fmt.Errorf("%s is down: %w", daemon, errdefs.ErrUnavailable)
		})...)
	lis, err := net.Listen("unix", filepath.Join(dir, "door"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	d.client, err = grpc.NewClient("unix:"+filepath.Join(dir, "door"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(rpc.MessageMax), grpc.MaxCallSendMsgSize(1<<30)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.client.Close()
		backend.Close()
		srv.Stop()
		<-served
	})
	return d
}

func (d door) stream(t testing.TB, ctx context.Context) grpc.ClientStream {
	t.Helper()
	s, err := d.client.NewStream(ctx, bidi, "/test.Echo/Stream")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPassThroughUnary(t *testing.T) {
	for _, method := range []string{"/test.Echo/Unary", "/test.Known/Unary"} {
		t.Run(method, func(t *testing.T) { passThroughUnary(t, method) })
	}
}

func passThroughUnary(t *testing.T, method string) {
	d := openDoor(t, time.Minute)
	var md metadata.MD
	var left time.Duration
	serve(t, d.socket, echo{unary: func(ctx context.Context) error {
		md, _ = metadata.FromIncomingContext(ctx)
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
		if err := grpc.SetHeader(ctx, metadata.Pairs("a-header", "1")); err != nil {
			return err
		}
		return grpc.SetTrailer(ctx, metadata.Pairs("a-trailer", "2", "binary-bin", "\x00\xff"))
	}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", "k8s.io", "containerd-lease", "l1",
		"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "twice", "a", "twice", "b", "own-bin", "\x01\xfe")
	var header, trailer metadata.MD
	if err := d.client.Invoke(ctx, method, new(empty), new(empty), grpc.Header(&header), grpc.Trailer(&trailer)); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string][]string{
		"containerd-namespace": {"k8s.io"}, "containerd-lease": {"l1"}, "twice": {"a", "b"}, "own-bin": {"\x01\xfe"},
	} {
		if diff := cmp.Diff(want, md.Get(key)); diff != "" {
			t.Errorf("header %s at the backend (-want +got):\n%s", key, diff)
		}
	}
	if got := strings.Join(md.Get("traceparent"), " "); !strings.HasPrefix(got, "00-0af7651916cd43dd8448eb211c80319c-") || strings.Contains(got, " ") {
		t.Errorf("traceparent at the backend: %q", got)
	}
	if left < 50*time.Second || left > time.Minute {
		t.Errorf("deadline at the backend: in %v, want a minute", left)
	}
	if got := header.Get("a-header"); len(got) != 1 || got[0] != "1" {
		t.Errorf("header: got %v", header)
	}
	if got := trailer.Get("binary-bin"); len(trailer.Get("a-trailer")) != 1 || len(got) != 1 || got[0] != "\x00\xff" {
		t.Errorf("trailer: got %v", trailer)
	}
}

func TestPassThroughKeepsStatusDetails(t *testing.T) {
	d := openDoor(t, time.Minute)
	want, err := status.New(codes.ResourceExhausted, "no more ☃").WithDetails(
		&errdetails.RetryInfo{}, &errdetails.ErrorInfo{Reason: "full", Domain: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	fail := func(set func(metadata.MD) error) error {
		return errors.Join(set(metadata.Pairs("why", "disk")), nil)
	}
	serve(t, d.socket, echo{
		unary: func(ctx context.Context) error {
			return errors.Join(fail(func(md metadata.MD) error { return grpc.SetTrailer(ctx, md) }), want.Err())
		},
		stream: func(s grpc.ServerStream) error { s.SetTrailer(metadata.Pairs("why", "disk")); return want.Err() },
	})
	direct, err := grpc.NewClient("unix:"+d.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	for name, call := range calls {
		through, plain := status.Convert(call(t.Context(), d.client)), status.Convert(call(t.Context(), direct))
		if diff := cmp.Diff(plain.Proto().String(), through.Proto().String()); diff != "" {
			t.Errorf("%s (-direct +through):\n%s", name, diff)
		}
	}
	s := d.stream(t, t.Context())
	err = s.RecvMsg(new(empty))
	if got := status.Convert(err); len(got.Details()) != 2 || got.Message() != "no more ☃" {
		t.Errorf("got %v, want two details", err)
	}
	if diff := cmp.Diff([]string{"disk"}, s.Trailer().Get("why")); diff != "" {
		t.Errorf("trailer (-want +got):\n%s", diff)
	}
	if got := len(s.Trailer().Get("grpc-status-details-bin")); got > 1 {
		t.Errorf("details are there %d times", got)
	}
}

func TestPassThroughServerStream(t *testing.T) {
	d := openDoor(t, time.Minute)
	goOn := make(chan struct{})
	serve(t, d.socket, echo{stream: func(s grpc.ServerStream) error {
		if err := s.RecvMsg(new(blob)); err != nil {
			return err
		}
		if err := s.SendHeader(metadata.Pairs("early", "yes")); err != nil {
			return err
		}
		<-goOn
		for i := range 100 {
			if err := s.SendMsg(&blob{Value: []byte{byte(i)}}); err != nil {
				return err
			}
		}
		return nil
	}})
	s := d.stream(t, t.Context())
	if err := errors.Join(s.SendMsg(&blob{Value: []byte("request")}), s.CloseSend()); err != nil {
		t.Fatal(err)
	}
	header, err := s.Header() // comes before any message does
	if err != nil || len(header.Get("early")) != 1 {
		t.Errorf("header: %v, %v", header, err)
	}
	close(goOn)
	for i := range 100 {
		var m blob
		if err := s.RecvMsg(&m); err != nil || m.Value[0] != byte(i) {
			t.Fatalf("message %d: %v, %v", i, m.Value, err)
		}
	}
	if err := s.RecvMsg(new(blob)); err != io.EOF {
		t.Errorf("end: got %v, want EOF", err)
	}
}

func TestPassThroughHalfClose(t *testing.T) {
	d := openDoor(t, time.Minute)
	serve(t, d.socket, echo{stream: func(s grpc.ServerStream) error {
		var n byte
		for {
			err := s.RecvMsg(new(blob))
			if err == io.EOF {
				// The answer to everything comes after the half close.
				return s.SendMsg(&blob{Value: []byte{n}})
			}
			if err != nil {
				return err
			}
			n++
			if err := s.SendMsg(&blob{Value: []byte{n}}); err != nil {
				return err
			}
		}
	}})
	s := d.stream(t, t.Context())
	for i := range byte(10) {
		if err := s.SendMsg(new(blob)); err != nil {
			t.Fatal(err)
		}
		var m blob
		if err := s.RecvMsg(&m); err != nil || m.Value[0] != i+1 {
			t.Fatalf("answer %d: %v, %v", i, m.Value, err)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var m blob
	if err := s.RecvMsg(&m); err != nil || m.Value[0] != 10 {
		t.Errorf("after the half close: %v, %v", m.Value, err)
	}
	if err := s.RecvMsg(&m); err != io.EOF {
		t.Errorf("end: got %v, want EOF", err)
	}
}

func TestPassThroughBackendThatEndsFirst(t *testing.T) {
	d := openDoor(t, time.Minute)
	serve(t, d.socket, echo{stream: func(s grpc.ServerStream) error {
		if err := s.RecvMsg(new(blob)); err != nil {
			return err
		}
		return fmt.Errorf("enough: %w", errdefs.ErrOutOfRange)
	}})
	s := d.stream(t, t.Context())
	var err error
	for err == nil {
		err = s.SendMsg(&blob{Value: make([]byte, 1<<16)})
	}
	if got := s.RecvMsg(new(blob)); err != io.EOF || status.Code(got) != codes.OutOfRange {
		t.Errorf("send: %v, then %v, want EOF and out of range", err, got)
	}
}

func TestPassThroughCancellation(t *testing.T) {
	d := openDoor(t, time.Minute)
	entered, left := make(chan struct{}, 1), make(chan error, 1)
	stop := serve(t, d.socket, echo{stream: func(s grpc.ServerStream) error {
		entered <- struct{}{}
		<-s.Context().Done()
		left <- s.Context().Err()
		return s.Context().Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	s := d.stream(t, ctx)
	<-entered
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("at the backend: %v", err)
	}
	if err := s.RecvMsg(new(blob)); status.Code(err) != codes.Canceled {
		t.Errorf("at the client: %v", err)
	}

	s = d.stream(t, t.Context())
	<-entered
	stop()
	if err := s.RecvMsg(new(blob)); status.Code(err) != codes.Unavailable {
		t.Errorf("when the backend dies: got %v, want unavailable", err)
	}
}

func TestPassThroughLargeMessages(t *testing.T) {
	d := openDoor(t, time.Minute)
	serve(t, d.socket, echo{stream: func(s grpc.ServerStream) error {
		for {
			m := new(blob)
			if err := s.RecvMsg(m); err != nil {
				return err
			}
			if err := s.SendMsg(m); err != nil {
				return err
			}
		}
	}})
	const overhead = 5 // of the one field: tag and length
	s := d.stream(t, t.Context())
	for _, size := range []int{0, 1, 1 << 16, 8 << 20, rpc.MessageMax - overhead} {
		want := bytes.Repeat([]byte{0xa5, 0, byte(size)}, size/3+1)[:size]
		if err := s.SendMsg(&blob{Value: want}); err != nil {
			t.Fatal(err)
		}
		var got blob
		if err := s.RecvMsg(&got); err != nil || !bytes.Equal(got.Value, want) {
			t.Fatalf("%d bytes: got %d, %v", size, len(got.Value), err)
		}
	}
	if err := s.SendMsg(&blob{Value: make([]byte, rpc.MessageMax+1)}); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if err := s.RecvMsg(new(blob)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message that is too large: got %v, want resource exhausted", err)
	}
}

// TestPassThroughDoesNotBuffer lets a backend send as fast as it can to a client
// that does not read.
func TestPassThroughDoesNotBuffer(t *testing.T) {
	d := openDoor(t, time.Minute)
	var sent atomic.Int64
	serve(t, d.socket, echo{stream: func(s grpc.ServerStream) error {
		for {
			if err := s.SendMsg(&blob{Value: make([]byte, 1<<20)}); err != nil {
				return err
			}
			sent.Add(1)
		}
	}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := d.stream(t, ctx)
	if err := s.RecvMsg(new(blob)); err != nil {
		t.Fatal(err)
	}
	for still, last := 0, int64(-1); still < 20; time.Sleep(10 * time.Millisecond) {
		if n := sent.Load(); n != last {
			still, last = 0, n
			if n > 64 {
				t.Fatalf("%d MiB are on their way to a client that does not read", n)
			}
			continue
		}
		still++
	}
}

func TestPassThroughHoldsACallWhileTheBackendRestarts(t *testing.T) {
	for name, call := range calls {
		// Its own door: a call that is sent before the end of the last
		// backend is noticed has reached it, and is not held.
		d := openDoor(t, time.Minute)
		answer := make(chan error, 1)
		go func() { answer <- call(t.Context(), d.client) }()
		select {
		case err := <-answer:
			t.Fatalf("%s: was not held: %v", name, err)
		case <-time.After(50 * time.Millisecond):
		}
		stop := serve(t, d.socket, fine)
		if err := <-answer; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		stop()
	}
}

func TestPassThroughHoldIsBounded(t *testing.T) {
	d := openDoor(t, 50*time.Millisecond)
	for method, want := range map[string]*status.Status{
		"/test.Echo/Unary": status.New(codes.Unavailable, "backend is down: unavailable"),
		"/containerd.services.content.v1.Content/Write": status.New(codes.Aborted, "backend is down: aborted"),
		"/containerd.services.content.v1.Content/Read":  status.New(codes.Unavailable, "backend is down: unavailable"),
		"/test.Other/Unary":                             status.New(codes.Unimplemented, "unknown service test.Other: not implemented"),
		"/Echo/Unary":                                   status.New(codes.Unimplemented, "unknown service Echo: not implemented"),
		"/test.Echo/Unary/x":                            status.New(codes.PermissionDenied, ""),
	} {
		err := d.client.Invoke(t.Context(), method, new(empty), new(empty))
		got := status.Convert(err)
		if got.Code() != want.Code() || want.Message() != "" && got.Message() != want.Message() {
			t.Errorf("%s: got %v, want %v", method, got, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	// At its deadline the call ends at both ends, and either may be first to
	// say so.
	if err := callUnary(ctx, d.client); status.Code(err) != codes.DeadlineExceeded && status.Code(err) != codes.Unavailable {
		t.Errorf("a call whose deadline is earlier: %v", err)
	}
}

func TestBackendIsWatched(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	b, err := rpc.DialBackend("backend", socket, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	told := make(chan bool)
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() { watched <- b.Watch(ctx, func(up bool) { told <- up }) }()
	for range 2 {
		if <-told {
			t.Error("told that a daemon that is not there is up")
		}
		stop := serve(t, socket, fine)
		if !<-told {
			t.Error("told that a daemon that came is away")
		}
		stop()
	}
	if <-told {
		t.Error("told that a daemon that went is up")
	}
	cancel()
	if err := <-watched; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch: %v", err)
	}
}

// BenchmarkUnary measures what the door adds to a call.
func BenchmarkUnary(b *testing.B) {
	d := openDoor(b, time.Minute)
	lis, err := net.Listen("unix", d.socket)
	if err != nil {
		b.Fatal(err)
	}
	srv := rpc.NewServer("backend", slog.New(slog.DiscardHandler))
	fine.register(srv)
	go srv.Serve(lis)
	defer srv.Stop()
	direct, err := rpc.Dial(d.socket)
	if err != nil {
		b.Fatal(err)
	}
	defer direct.Close()
	for name, conn := range map[string]*grpc.ClientConn{"direct": direct, "through": d.client} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := callUnary(b.Context(), conn); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
