package leasetest

import (
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/lease"
)

// RunMembers tests the members that open returns. It calls open once per
// promise and expects nothing in them each time. The resources are two or more
// that the owner takes; whether they exist makes no difference.
func RunMembers(t *testing.T, open func(t *testing.T) lease.Members, resources ...lease.Resource) {
	slices.SortFunc(resources, lease.Resource.Compare)
	for _, p := range memberPromises {
		t.Run(p.name, func(t *testing.T) { p.check(t, open(t), resources) })
	}
}

var memberPromises = []struct {
	name  string
	check func(*testing.T, lease.Members, []lease.Resource)
}{
	{"a member is added once, listed in order and removed again", memberOnce},
	{"a drop forgets one lease and no other", memberDrop},
	{"members of leases with confusable names stay apart", memberNames},
	{"a resource that is malformed is refused", memberRefused},
}

func memberOnce(t *testing.T, m lease.Members, rs []lease.Resource) {
	l := lease.Ref{ID: "l", Generation: 7}
	wantMembers(t, m, "ns", l)
	backward := slices.Clone(rs)
	slices.Reverse(backward)
	for _, r := range slices.Concat(backward, rs) {
		addMember(t, m, "ns", l, r)
	}
	wantMembers(t, m, "ns", l, rs...)
	for i, r := range rs {
		for range 2 {
			if err := m.RemoveMember(t.Context(), "ns", l, r); err != nil {
				t.Fatalf("RemoveMember(%v): %v", r, err)
			}
		}
		wantMembers(t, m, "ns", l, rs[i+1:]...)
	}
}

func memberDrop(t *testing.T, m lease.Members, rs []lease.Resource) {
	l, newer := lease.Ref{ID: "l", Generation: 7}, lease.Ref{ID: "l", Generation: 1 << 62}
	for _, r := range rs {
		addMember(t, m, "ns", l, r)
	}
	addMember(t, m, "ns", newer, rs[0])
	addMember(t, m, "other", l, rs[1])
	for range 2 {
		if err := m.DropMembers(t.Context(), "ns", l); err != nil {
			t.Fatalf("DropMembers: %v", err)
		}
		wantMembers(t, m, "ns", l)
		wantMembers(t, m, "ns", newer, rs[0])
		wantMembers(t, m, "other", l, rs[1])
	}
	addMember(t, m, "ns", l, rs[1])
	wantMembers(t, m, "ns", l, rs[1])
}

func memberNames(t *testing.T, m lease.Members, rs []lease.Resource) {
	refs := []lease.Ref{
		{ID: "l", Generation: 1}, {ID: "l", Generation: 11}, {ID: "l1", Generation: 1}, {ID: "l/1", Generation: 1},
		{ID: "l\x00", Generation: 1}, {ID: "l\x001", Generation: 1}, {ID: "\x01", Generation: 1}, {ID: "..", Generation: 1},
	}
	for i, l := range refs {
		addMember(t, m, "ns", l, rs[i%len(rs)])
	}
	for i, l := range refs {
		wantMembers(t, m, "ns", l, rs[i%len(rs)])
	}
	for i, l := range refs {
		if err := m.DropMembers(t.Context(), "ns", l); err != nil {
			t.Fatalf("DropMembers(%v): %v", l, err)
		}
		wantMembers(t, m, "ns", l)
		for j := i + 1; j < len(refs); j++ {
			wantMembers(t, m, "ns", refs[j], rs[j%len(rs)])
		}
	}
}

func memberRefused(t *testing.T, m lease.Members, _ []lease.Resource) {
	l := lease.Ref{ID: "l", Generation: 7}
	wantKind(t, "AddMember without a type", m.AddMember(t.Context(), "ns", l, lease.Resource{ID: "x"}), errdefs.ErrNotImplemented)
	wantKind(t, "RemoveMember without a type", m.RemoveMember(t.Context(), "ns", l, lease.Resource{ID: "x"}), errdefs.ErrNotImplemented)
	wantMembers(t, m, "ns", l)
}

func addMember(t *testing.T, m lease.Members, ns string, l lease.Ref, r lease.Resource) {
	t.Helper()
	if err := m.AddMember(t.Context(), ns, l, r); err != nil {
		t.Fatalf("AddMember(%s, %v, %v): %v", ns, l, r, err)
	}
}

func wantMembers(t *testing.T, m lease.Members, ns string, l lease.Ref, want ...lease.Resource) {
	t.Helper()
	got, err := m.ListMembers(t.Context(), ns, l)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("ListMembers(%s, %v) = %v, %v; want %v", ns, l, got, err, want)
	}
}
