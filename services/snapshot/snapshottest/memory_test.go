package snapshottest_test

import (
	"testing"

	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/snapshot/snapshottest"
)

func TestMemory(t *testing.T) {
	snapshottest.Run(t, func(_ *testing.T, leases lease.Registry) snapshottest.Fixture {
		m := snapshottest.NewMemory(leases)
		return snapshottest.Fixture{
			Stores: m, Snapshotter: snapshottest.Snapshotter, Traits: m.Traits(), Members: m, Holder: m,
		}
	})
}
