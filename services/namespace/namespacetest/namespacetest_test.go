package namespacetest_test

import (
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/namespace/namespacerpc"
	"github.com/gantryd/gantry/services/namespace/namespacetest"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

func TestMemory(t *testing.T) {
	namespacetest.Run(t, func(_ *testing.T, h namespace.Holder) namespace.Store {
		return namespacetest.NewMemory(h)
	})
}

func TestMemoryAcrossTheWire(t *testing.T) {
	namespacetest.Run(t, func(t *testing.T, h namespace.Holder) namespace.Store {
		holder := namespacerpc.NewHolder(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) {
			namespacerpc.RegisterHolder(r, h)
		}))
		return namespacerpc.NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) {
			namespacerpc.Register(r, namespacetest.NewMemory(holder))
		}))
	})
}
