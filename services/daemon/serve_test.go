package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/services/suite/suiterpc"
)

func serving(t *testing.T, cfg Common) Serving {
	t.Helper()
	lis, err := Listen(cfg, "testd")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	return Serving{Name: "testd", Common: cfg, Server: rpc.NewServer("testd", log), Listeners: []net.Listener{lis}, Log: log}
}

func dial(t *testing.T, cfg Common) *grpc.ClientConn {
	t.Helper()
	conn, err := rpc.Dial(suite.Socket(cfg.Sockets, "testd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// block registers a call that tells that it began and lasts until goOn.
func block(srv grpc.ServiceRegistrar, began chan<- struct{}, goOn <-chan struct{}) {
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Block",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "Block", ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			began <- struct{}{}
			<-goOn
			return s.SendMsg(&emptypb.Empty{})
		}}},
	}, nil)
}

func callBlock(ctx context.Context, c *grpc.ClientConn) error {
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/test.Block/Block")
	if err != nil {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	return s.RecvMsg(&emptypb.Empty{})
}

// supervisor stands for systemd: it collects what it is told.
func supervisor(t *testing.T) <-chan string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	told := make(chan string, 10)
	go func() {
		b := make([]byte, 100)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			told <- string(b[:n])
		}
	}()
	return told
}

func await[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: waited for it in vain", what)
		panic("unreachable")
	}
}

func TestServeStopsInOrder(t *testing.T) {
	told := supervisor(t)
	cfg := config(t)
	s := serving(t, cfg)
	s.Health = health.NewServer()
	began, goOn := make(chan struct{}), make(chan struct{})
	block(s.Server, began, goOn)
	workEnded := make(chan struct{})
	work := func(ctx context.Context) error {
		<-ctx.Done()
		close(workEnded)
		return ctx.Err()
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, s, work) }()
	if got := await(t, "ready", told); got != "READY=1" {
		t.Fatalf("told %q, want READY=1", got)
	}
	conn := dial(t, cfg)
	if r, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health when ready: %v, %v", r, err)
	}
	answer := make(chan error, 1)
	go func() { answer <- callBlock(t.Context(), conn) }()
	await(t, "the call", began)

	stop()
	if got := await(t, "stopping", told); got != "STOPPING=1" {
		t.Fatalf("told %q, want STOPPING=1", got)
	}
	// Nobody connects any more, and the call goes on, with its work.
	path := suite.Socket(cfg.Sockets, "testd")
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		c.Close()
		if time.Now().After(deadline) {
			t.Fatal("the socket still answers")
		}
	}
	r, err := s.Health.Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || r.Status != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health when stopping: %v, %v", r, err)
	}
	select {
	case <-workEnded:
		t.Error("the work ended before the call")
	case err := <-answer:
		t.Errorf("the call was cut: %v", err)
	case err := <-served:
		t.Errorf("Serve returned before the call: %v", err)
	default:
	}
	close(goOn)
	if err := await(t, "the answer", answer); err != nil {
		t.Errorf("the call in flight: %v", err)
	}
	await(t, "the end of the work", workEnded)
	if err := await(t, "Serve", served); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestWorkThatEndsStopsTheDaemon(t *testing.T) {
	s := serving(t, config(t))
	broken := errors.New("broken")
	otherEnded := false
	err := Serve(t.Context(), s,
		func(context.Context) error { return broken },
		func(ctx context.Context) error { <-ctx.Done(); otherEnded = true; return errors.New("later") })
	if !errors.Is(err, broken) || !otherEnded {
		t.Errorf("got %v (other ended: %t), want the first error and all works ended", err, otherEnded)
	}
}

func TestDaemonDescribesItself(t *testing.T) {
	cfg := config(t)
	cfg.Metrics = true
	s := serving(t, cfg)
	s.Plugins = []suite.Plugin{
		{Type: "io.containerd.content.v1", ID: "content", Exports: map[string]string{"root": "/x"}, Platforms: []string{"linux/amd64"}},
		{Type: "io.containerd.snapshotter.v1", ID: "zfs", Skip: "no zfs here"},
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, s) }()
	d, err := suiterpc.NewClient(dial(t, cfg)).Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d.Daemon != "testd" || d.Pid != os.Getpid() || d.Version == "" || d.Memory < 1<<20 || time.Since(d.Started) > time.Minute {
		t.Errorf("got %+v", d)
	}
	if diff := cmp.Diff(s.Plugins, d.Plugins); diff != "" {
		t.Errorf("plugins (-want +got):\n%s", diff)
	}
	if got := metrics(t, suite.Socket(cfg.Sockets, "testd.metrics")); !strings.Contains(got, `grpc_server_handled_total{grpc_code="OK",grpc_method="Describe"`) {
		t.Errorf("metrics:\n%s\nwant the call of Describe", got)
	}
	stop()
	if err := await(t, "Serve", served); err != nil {
		t.Error(err)
	}
	left, _ := filepath.Glob(filepath.Join(cfg.Sockets, "*.sock"))
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func metrics(t *testing.T, socket string) string {
	t.Helper()
	c := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) },
	}}
	resp, err := c.Get("http://localhost/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
