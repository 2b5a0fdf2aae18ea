package leasetest_test

import (
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/lease/leaserpc"
	"github.com/gantryd/gantry/services/lease/leasetest"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

func TestMemory(t *testing.T) {
	leasetest.Run(t, func(*testing.T) leasetest.Subject {
		m := &leasetest.Memory{}
		return leasetest.Subject{Leases: m, Registry: m}
	})
}

func TestMemoryAcrossTheWire(t *testing.T) {
	leasetest.Run(t, func(t *testing.T) leasetest.Subject {
		m := &leasetest.Memory{}
		conn := rpctest.Pipe(t, func(r grpc.ServiceRegistrar) {
			leaserpc.Register(r, m)
			leaserpc.RegisterRegistry(r, m)
		})
		return leasetest.Subject{Leases: leaserpc.NewClient(conn), Registry: leaserpc.NewRegistry(conn)}
	})
}

var members = []lease.Resource{
	{ID: "i", Type: lease.TypeImages},
	{ID: "a\x00b", Type: "snapshots/overlayfs"},
	{ID: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", Type: lease.TypeContent},
}

func TestMembers(t *testing.T) {
	leasetest.RunMembers(t, func(*testing.T) lease.Members { return &leasetest.Members{} }, members...)
}

func TestMembersAcrossTheWire(t *testing.T) {
	leasetest.RunMembers(t, func(t *testing.T) lease.Members {
		return leaserpc.NewMembers(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) {
			leaserpc.RegisterMembers(r, &leasetest.Members{})
		}))
	}, members...)
}
