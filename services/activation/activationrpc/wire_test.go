package activationrpc_test

import (
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/activation/activationrpc"
	"github.com/gantryd/gantry/services/activation/activationtest"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

func TestMemoryAcrossTheWire(t *testing.T) {
	activationtest.Run(t, func(t *testing.T, leases lease.Registry) activationtest.Fixture {
		f := activationtest.NewMemory(leases).Fixture()
		conn := rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { activationrpc.Register(r, f.Stores) })
		f.Stores, f.Allows = activationrpc.NewClient(conn), false
		return f
	})
}
