package fsckrpc_test

import (
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/fsck/fsckrpc"
	"github.com/gantryd/gantry/services/fsck/fscktest"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

func TestAcrossTheWire(t *testing.T) {
	fscktest.Run(t, func(t *testing.T) fscktest.Subject {
		s := fscktest.NewMemory().Subject()
		inner := s.Checker
		s.Checker = fsckrpc.NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { fsckrpc.Register(r, inner) }))
		return s
	})
}
