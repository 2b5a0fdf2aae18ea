package diffrpc_test

import (
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff/diffrpc"
	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

func TestMemoryAcrossTheWire(t *testing.T) {
	difftest.Run(t, func(t *testing.T, blobs content.Stores) difftest.Fixture {
		m := difftest.NewMemory(blobs)
		conn := rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { diffrpc.Register(r, m) })
		return difftest.Fixture{Services: diffrpc.NewClient(conn), Tree: m.Tree}
	})
}
