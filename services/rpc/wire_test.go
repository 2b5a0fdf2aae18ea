package rpc_test

import (
	"context"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gantryd/gantry/services/rpc"
)

type empty = emptypb.Empty

var calls = map[string]func(context.Context, grpc.ClientConnInterface) error{
	"unary": callUnary, "stream": callStream,
	// Of this one the whole process knows that it is unary.
	"known": func(ctx context.Context, c grpc.ClientConnInterface) error {
		return c.Invoke(ctx, "/test.Known/Unary", new(empty), new(empty))
	},
}

// know has the process know the service test.Known, as it knows those that are
// generated.
var know = sync.OnceValue(func() error {
	name := func(s string) *string { return &s }
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: name("test/known.proto"), Package: name("test"), Dependency: []string{"google/protobuf/empty.proto"},
		Service: []*descriptorpb.ServiceDescriptorProto{{
			Name: name("Known"),
			Method: []*descriptorpb.MethodDescriptorProto{{
				Name: name("Unary"), InputType: name(".google.protobuf.Empty"), OutputType: name(".google.protobuf.Empty"),
			}},
		}},
	}, protoregistry.GlobalFiles)
	if err != nil {
		return err
	}
	return protoregistry.GlobalFiles.RegisterFile(file)
})

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
