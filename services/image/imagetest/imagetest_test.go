package imagetest_test

import (
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/image/imagerpc"
	"github.com/gantryd/gantry/services/image/imagetest"
	"github.com/gantryd/gantry/services/lease/leaserpc"
	"github.com/gantryd/gantry/services/lease/leasetest"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

func TestMemory(t *testing.T) {
	imagetest.Run(t, func(*testing.T) imagetest.Subject {
		leases := &leasetest.Memory{}
		return imagetest.Subject{Images: imagetest.NewMemory(leases), Leases: leases}
	})
}

func TestMemoryAcrossTheWire(t *testing.T) {
	imagetest.Run(t, func(t *testing.T) imagetest.Subject {
		leases := &leasetest.Memory{}
		conn := rpctest.Pipe(t, func(r grpc.ServiceRegistrar) {
			imagerpc.Register(r, imagetest.NewMemory(leases))
			leaserpc.Register(r, leases)
		})
		return imagetest.Subject{Images: imagerpc.NewClient(conn), Leases: leaserpc.NewClient(conn)}
	})
}
