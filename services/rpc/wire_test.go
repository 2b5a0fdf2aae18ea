package rpc_test

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gantryd/gantry/services/rpc"
)

type empty = emptypb.Empty

var calls = map[string]func(context.Context, grpc.ClientConnInterface) error{"unary": callUnary, "stream": callStream}

const waitMethod = "/containerd.services.tasks.v1.Tasks/Wait"

// registerWait answers the Wait of tasks, which ends only when something
// happens elsewhere.
func registerWait(r grpc.ServiceRegistrar, wait func(context.Context) error) {
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: "containerd.services.tasks.v1.Tasks",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: "Wait",
			Handler: func(_ any, ctx context.Context, dec func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
				in := new(empty)
				if err := dec(in); err != nil {
					return nil, err
				}
				return intercept(ctx, in, &grpc.UnaryServerInfo{FullMethod: waitMethod},
					func(ctx context.Context, req any) (any, error) { return req, wait(ctx) })
			},
		}},
	}, wait)
}

func callWait(ctx context.Context, c grpc.ClientConnInterface) error {
	return c.Invoke(ctx, waitMethod, new(empty), new(empty))
}

func memoryListener(t *testing.T) *bufconn.Listener {
	lis := bufconn.Listen(1 << 20)
	t.Cleanup(func() { lis.Close() })
	return lis
}

func dialListener(t *testing.T, lis *bufconn.Listener) *grpc.ClientConn {
	t.Helper()
	conn, err := rpc.Dial("test", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return lis.DialContext(ctx)
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
