package contentrpc

import (
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contenttest"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

func TestMemoryAcrossTheWire(t *testing.T) {
	contenttest.Run(t, func(t *testing.T, leases lease.Registry) contenttest.Subject {
		m := contenttest.NewMemory(leases)
		return contenttest.Subject{
			Stores:  NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { Register(r, m) })),
			Members: m,
		}
	})
}

func TestIsolatedMemoryAcrossTheWire(t *testing.T) {
	contenttest.RunIsolated(t, func(t *testing.T, leases lease.Registry, namespaces content.Namespaces) contenttest.Subject {
		m := contenttest.NewIsolated(leases, namespaces)
		return contenttest.Subject{
			Stores:  NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { Register(r, m) })),
			Members: m,
		}
	})
}
