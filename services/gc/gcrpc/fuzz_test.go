package gcrpc

import (
	"context"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	gcv1 "github.com/gantryd/gantry/proto/gantry/gc/v1"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/gc/gctest"
)

// FuzzSweep gives an owner whatever a coordinator may send: it is refused, or
// removes what is named and nothing else.
func FuzzSweep(f *testing.F) {
	m := gctest.NewMemory("snapshots/memory", gc.Now)
	named := toNode(m.Node("ns", 1))
	for _, r := range []*gcv1.SweepRequest{
		nil,
		{Epoch: 1, Dead: []*gcv1.Node{named}},
		{Epoch: 1, Dead: []*gcv1.Node{named, {}}},
		{Epoch: 1, Dead: []*gcv1.Node{nil}},
		{Epoch: 2, Dead: []*gcv1.Node{named}},
		{Dead: []*gcv1.Node{{Namespace: "ns", Type: "snapshots/memory/x", Id: "object 1"}}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var req gcv1.SweepRequest
		if proto.Unmarshal(b, &req) != nil {
			t.Skip()
		}
		ctx := context.Background()
		m := gctest.NewMemory("snapshots/memory", gc.Now)
		n, err := m.Make(ctx, "ns", 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Begin(ctx, 1); err != nil {
			t.Fatal(err)
		}
		for _, err := range m.Freeze(ctx, 1, gc.Now().Add(gc.HoldMax)) {
			t.Fatalf("Freeze: %v", err)
		}
		var dead []gc.Node
		for _, n := range req.GetDead() {
			dead = append(dead, fromNode(n))
		}
		swept, err := m.Sweep(ctx, gc.Epoch(req.GetEpoch()), dead)
		if err != nil && !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
			t.Fatalf("Sweep: %v", err)
		}
		want := 0
		if err == nil && slices.Contains(dead, n) {
			want = 1
		}
		if has, _ := m.Has(ctx, n); swept != want || has != (want == 0) {
			t.Errorf("swept %d, want %d; it is there: %t", swept, want, has)
		}
	})
}
