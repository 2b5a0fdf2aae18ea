package containerrpc

import (
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/container/containertest"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

func TestMemoryAcrossTheWire(t *testing.T) {
	containertest.Run(t, func(t *testing.T) container.Stores {
		return NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) {
			Register(r, containertest.NewMemory())
		}))
	})
}
