package contentd

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/lease/leasetest"
	"github.com/gantryd/gantry/services/namespace"
)

// leasedStore is a store with a lease, and the scope of it.
func leasedStore(t *testing.T) (*Store, namespace.Scope, lease.Ref) {
	t.Helper()
	known := &leasetest.Memory{}
	_, err := known.In(one).Create(t.Context(), "l", nil)
	must(t, err)
	scope := namespace.Scope{Name: one.Name, Lease: "l"}
	l, err := known.Lookup(t.Context(), scope)
	must(t, err)
	return openStore(t, quickConfig(t), known), scope, l
}

// TestPendingIngestIsNeverMissed looks for ingests that are just being recorded:
// each is there all the time, and once.
func TestPendingIngestIsNeverMissed(t *testing.T) {
	s, scope, l := leasedStore(t)
	in := s.In(scope)
	for i := range 100 {
		ref := fmt.Sprintf("r%03d", i)
		w, err := in.Writer(t.Context(), content.WriterOptions{Ref: ref})
		must(t, err)
		_, err = w.Write([]byte("some"))
		must(t, err)
		closed := make(chan error, 1)
		go func() { closed <- w.Close() }()
		for over := false; !over; {
			over = len(closed) > 0 // and then once more
			if st, err := in.Status(t.Context(), ref); err != nil || st.Offset != 4 {
				t.Fatalf("Status(%s): %+v, %v", ref, st, err)
			}
			all, err := in.ListStatuses(t.Context())
			must(t, err)
			if len(all) != i+1 || all[i].Ref != ref {
				t.Fatalf("ListStatuses: %d, want %d", len(all), i+1)
			}
			members, err := s.ListMembers(t.Context(), scope.Name, l)
			must(t, err)
			if len(members) != i+1 || members[i] != ingestOf(ref) {
				t.Fatalf("ListMembers: %v, want %d", members, i+1)
			}
		}
		must(t, <-closed)
	}
}

// TestPendingIngestLeavesItsLease: what a lease lost is not in it when it is
// recorded.
func TestPendingIngestLeavesItsLease(t *testing.T) {
	for name, leave := range map[string]func(s *Store, l lease.Ref) error{
		"RemoveMember": func(s *Store, l lease.Ref) error {
			return s.RemoveMember(t.Context(), one.Name, l, ingestOf("r"))
		},
		"DropMembers": func(s *Store, l lease.Ref) error { return s.DropMembers(t.Context(), one.Name, l) },
	} {
		s, scope, l := leasedStore(t)
		w, err := s.In(scope).Writer(t.Context(), content.WriterOptions{Ref: "r"})
		must(t, err)
		want := func(when string, want ...lease.Resource) {
			t.Helper()
			if got, err := s.ListMembers(t.Context(), one.Name, l); err != nil || !slices.Equal(got, want) {
				t.Errorf("%s, %s: members %v, %v; want %v", name, when, got, err, want)
			}
		}
		want("while it is pending", ingestOf("r"))
		// Who puts it in finds it, and takes it out in the end.
		must(t, s.AddMember(t.Context(), one.Name, l, ingestOf("r")))
		want("put in once more", ingestOf("r"))
		must(t, leave(s, l))
		want("afterwards")
		must(t, w.Close())
		want("when it is recorded")
		must(t, s.In(scope).Abort(t.Context(), "r"))
	}
}

// TestPendingIngestThatIsCommittedLeavesEveryLease: also those that somebody
// else put it into.
func TestPendingIngestThatIsCommittedLeavesEveryLease(t *testing.T) {
	s, scope, l := leasedStore(t)
	for i, end := range []func(w content.Writer) error{
		func(w content.Writer) error { return w.Commit(t.Context(), 0, "", nil) },
		func(w content.Writer) error {
			return errors.Join(s.In(scope).Abort(t.Context(), "r"), w.Close())
		},
	} {
		w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
		must(t, err)
		_, err = w.Write([]byte{byte(i)})
		must(t, err)
		must(t, s.AddMember(t.Context(), one.Name, l, ingestOf("r")))
		must(t, end(w))
		if got, err := s.ListMembers(t.Context(), one.Name, l); err != nil || len(got) != 0 {
			t.Errorf("way %d: members %v, %v", i, got, err)
		}
		_, err = s.In(one).Status(t.Context(), "r")
		wantKind(t, "Status", err, errdefs.ErrNotFound)
		checkFiles(t, s, "afterwards")
	}
}
