package snapshotrpc_test

import (
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/lease/leaserpc"
	"github.com/gantryd/gantry/services/namespace/namespacerpc"
	"github.com/gantryd/gantry/services/rpc/rpctest"
	"github.com/gantryd/gantry/services/snapshot/snapshotrpc"
	"github.com/gantryd/gantry/services/snapshot/snapshottest"
)

func TestMemoryAcrossTheWire(t *testing.T) {
	snapshottest.Run(t, func(t *testing.T, leases lease.Registry) snapshottest.Fixture {
		m := snapshottest.NewMemory(leases)
		conn := rpctest.Pipe(t, func(r grpc.ServiceRegistrar) {
			snapshotrpc.Register(r, m)
			leaserpc.RegisterMembers(r, m)
			namespacerpc.RegisterHolder(r, m)
			snapshotrpc.RegisterMeter(r, m)
		})
		return snapshottest.Fixture{
			Stores:      snapshotrpc.NewClient(conn),
			Snapshotter: snapshottest.Snapshotter,
			Traits:      m.Traits(),
			Members:     leaserpc.NewMembers(conn),
			Holder:      namespacerpc.NewHolder(conn),
			Meter:       snapshotrpc.NewMeter(conn),
		}
	})
}
