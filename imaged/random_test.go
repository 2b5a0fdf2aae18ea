package imaged

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/lease/leasetest"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/suite"
)

// TestARandomWalkAgreesWithMemory does the same things, at random, to a store and to the one in
// memory, and wants the same answers.
func TestARandomWalkAgreesWithMemory(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	dir := t.TempDir()
	s := open(t, dir, Needs{})
	var model leasetest.Memory
	refs := map[string]lease.Ref{}
	ids := []string{"a", "b", "a\x00b", "/"}
	kinds := []lease.Resource{content, snapshot, img, {ID: "a\x00b", Type: lease.TypeImages}, {ID: "x", Type: "other"}}
	for step := range 400 {
		if random.IntN(100) == 0 {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir, Needs{Members: outlive(s)})
		}
		in := namespace.Scope{Name: []string{"n", "n.m"}[random.IntN(2)]}
		id, r := ids[random.IntN(len(ids))], kinds[random.IntN(len(kinds))]
		got, want := s.Leases().In(in), model.In(in)
		var what string
		var gotErr, wantErr error
		switch random.IntN(6) {
		case 0, 1:
			what = "Create"
			_, gotErr = got.Create(t.Context(), id, map[string]string{"k": id})
			_, wantErr = want.Create(t.Context(), id, map[string]string{"k": id})
		case 2:
			what = "Delete"
			gotErr, wantErr = got.Delete(t.Context(), id, false), want.Delete(t.Context(), id, false)
		case 3, 4:
			what = "AddResource"
			gotErr, wantErr = got.AddResource(t.Context(), id, r), want.AddResource(t.Context(), id, r)
		case 5:
			what = "DeleteResource"
			gotErr, wantErr = got.DeleteResource(t.Context(), id, r), want.DeleteResource(t.Context(), id, r)
		}
		if !errors.Is(gotErr, errdefs.Resolve(wantErr)) {
			t.Fatalf("step %d: %s(%q, %v) = %v, want %v", step, what, id, r, gotErr, wantErr)
		}
		if random.IntN(4) == 0 {
			if _, err := s.forgetAll(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		compare(t, got, want, step)
		l, err := s.Lookup(t.Context(), namespace.Scope{Name: in.Name, Lease: id})
		if err == nil && gotErr == nil && what == "Create" {
			key := in.Name + " " + id
			if l.Generation <= refs[key].Generation {
				t.Fatalf("step %d: generation %d after %d", step, l.Generation, refs[key].Generation)
			}
			refs[key] = l
		}
	}
}

// outlive returns the members of a store's owners, which are not restarted with
// it.
func outlive(s *Store) map[string]lease.Members {
	m := maps.Clone(s.members)
	delete(m, suite.Imaged)
	return m
}

func compare(t *testing.T, got, want lease.Store, step int) {
	t.Helper()
	describe := func(s lease.Store) string {
		var b strings.Builder
		leases, err := s.List(context.Background())
		fmt.Fprint(&b, err)
		for _, l := range leases {
			resources, err := s.ListResources(context.Background(), l.ID)
			fmt.Fprintf(&b, "\n%q %v %q %v", l.ID, l.Labels, resources, err)
		}
		return b.String()
	}
	if g, w := describe(got), describe(want); g != w {
		t.Fatalf("step %d: leases are\n%s\nwant\n%s", step, g, w)
	}
}
