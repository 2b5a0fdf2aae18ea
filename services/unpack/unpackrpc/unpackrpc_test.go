package unpackrpc_test

import (
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/rpc/rpctest"
	"github.com/gantryd/gantry/services/unpack/unpackrpc"
	"github.com/gantryd/gantry/services/unpack/unpacktest"
)

func TestMemoryAcrossTheWire(t *testing.T) {
	unpacktest.Run(t, func(t *testing.T, n unpacktest.Node) unpacktest.Fixture {
		f := unpacktest.NewMemory(n.Blobs, n.Leases).Fixture()
		inner := f.Services
		f.Services = unpackrpc.NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { unpackrpc.Register(r, inner) }))
		return f
	})
}
