package snapshotd

import (
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/rpc/rpctest"
	"github.com/gantryd/gantry/services/unpack/unpackrpc"
	"github.com/gantryd/gantry/services/unpack/unpacktest"
)

func TestUnpacking(t *testing.T) {
	onEach(t, func(t *testing.T, snapshotter string) {
		unpacktest.Run(t, func(t *testing.T, n unpacktest.Node) unpacktest.Fixture { return unpackInto(t, n, snapshotter) })
	})
}

func TestUnpackingAcrossTheWire(t *testing.T) {
	unpacktest.Run(t, func(t *testing.T, n unpacktest.Node) unpacktest.Fixture {
		f := unpackInto(t, n, Overlayfs)
		inner := f.Services
		f.Services = unpackrpc.NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { unpackrpc.Register(r, inner) }))
		return f
	})
}

// unpackInto also holds that nothing is left on the disk that is nobody's.
func unpackInto(t *testing.T, n unpacktest.Node, snapshotter string) unpacktest.Fixture {
	needs := testNeeds(t)
	needs.Content, needs.Leases = n.Blobs, n.Leases
	s := openTest(t, configOf(t, snapshotter), needs)
	t.Cleanup(func() { wantTidy(t, s, "in the end") })
	return unpacktest.Fixture{Services: s.Unpacking(), Snapshots: s, Snapshotter: snapshotter, Members: s}
}

func TestUnpackingOutside(t *testing.T) {
	unpacktest.Run(t, func(t *testing.T, n unpacktest.Node) unpacktest.Fixture {
		needRoot(t)
		cfg, needs := testConfig(t), testNeeds(t)
		needs.Content, needs.Leases = n.Blobs, n.Leases
		withTheirs(t, &cfg, &needs)
		s := openTest(t, cfg, needs)
		return unpacktest.Fixture{Services: s.Unpacking(), Snapshots: s, Snapshotter: theirs, Members: s}
	})
}
