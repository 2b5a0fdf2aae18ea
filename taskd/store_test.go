package taskd

import (
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/container/containerrpc"
	"github.com/gantryd/gantry/services/container/containertest"
	"github.com/gantryd/gantry/services/rpc/rpctest"
	"github.com/gantryd/gantry/services/task/taskrpc"
	"github.com/gantryd/gantry/services/task/tasktest"
)

func TestContainers(t *testing.T) {
	containertest.Run(t, func(t *testing.T) container.Stores {
		return newPlace(t).open(t, &cut{}).Containers()
	})
}

func TestContainersAcrossTheWire(t *testing.T) {
	containertest.Run(t, func(t *testing.T) container.Stores {
		s := newPlace(t).open(t, &cut{}).Containers()
		return containerrpc.NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) {
			containerrpc.Register(r, s)
		}))
	})
}

func TestTasks(t *testing.T) {
	tasktest.Run(t, func(t *testing.T) tasktest.Node {
		s := newPlace(t).open(t, &cut{})
		return tasktest.Node{Tasks: s.Tasks(), Containers: s.Containers()}
	})
}

func TestTasksAcrossTheWire(t *testing.T) {
	tasktest.Run(t, func(t *testing.T) tasktest.Node {
		s := newPlace(t).open(t, &cut{})
		return tasktest.Node{
			Containers: s.Containers(),
			Tasks: taskrpc.NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) {
				taskrpc.Register(r, s.Tasks())
			})),
		}
	})
}
