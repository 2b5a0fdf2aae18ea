package backuprpc_test

import (
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/backup/backuprpc"
	"github.com/gantryd/gantry/services/backup/backuptest"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

func TestAcrossTheWire(t *testing.T) {
	backuptest.Run(t, func(t *testing.T) backuptest.Subject {
		s := backuptest.NewMemory().Subject()
		inner := s.Keeper
		s.Keeper = backuprpc.NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { backuprpc.Register(r, inner) }))
		return s
	})
}
