// Package rpctest connects a client to a server inside one test.
package rpctest

import (
	"context"
	"log/slog"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/gantryd/gantry/services/rpc"
)

// Pipe serves what register registers and returns a connection to it: a real
// server and a real client with the interceptors of package rpc. Both end with
// the test.
func Pipe(t testing.TB, register func(grpc.ServiceRegistrar)) *grpc.ClientConn {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	srv := rpc.NewServer("rpctest", slog.New(slog.NewTextHandler(t.Output(), nil)))
	register(srv)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	conn, err := rpc.Dial("rpctest", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return lis.DialContext(ctx)
	}))
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() {
		conn.Close()
		srv.Stop()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return conn
}
