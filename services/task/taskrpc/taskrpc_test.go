package taskrpc

import (
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/container/containertest"
	"github.com/gantryd/gantry/services/rpc/rpctest"
	"github.com/gantryd/gantry/services/task/tasktest"
)

func TestMemoryAcrossTheWire(t *testing.T) {
	tasktest.Run(t, func(t *testing.T) tasktest.Node {
		containers := containertest.NewMemory()
		tasks := tasktest.NewMemory(containers, tasktest.DefaultPrograms())
		return tasktest.Node{
			Containers: containers,
			Tasks: NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) {
				Register(r, tasks)
			})),
		}
	})
}
