package gctest_test

import (
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/gc/gcrpc"
	"github.com/gantryd/gantry/services/gc/gctest"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

func TestMemory(t *testing.T) { gctest.Run(t, memory) }

func TestMemoryAcrossTheWire(t *testing.T) {
	gctest.Run(t, func(t *testing.T) gctest.Subject { return across(t, memory(t)) })
}

func memory(*testing.T) gctest.Subject {
	m := gctest.NewMemory("snapshots/memory", gc.Now)
	s := gctest.Subject{Owner: m, Driver: m}
	s.Restart = func() gctest.Subject {
		m.Restart()
		return s
	}
	return s
}

// across puts a wire between the coordinator and the owner.
func across(t *testing.T, s gctest.Subject) gctest.Subject {
	s.Owner = gcrpc.NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { gcrpc.Register(r, s.Owner) }))
	restart := s.Restart
	s.Restart = func() gctest.Subject { return across(t, restart()) }
	return s
}
