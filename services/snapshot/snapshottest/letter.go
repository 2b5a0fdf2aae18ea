package snapshottest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
)

// precedence holds which error comes first where there are several: clients
// that race each other decide by it.
func precedence(t *testing.T, f Fixture) {
	s, ctx := in(t, f, one), t.Context()
	ended := in(t, f, namespace.Scope{Name: "one", Lease: "ended"})
	committed(t, s, "name", "")
	prepare(t, s, "key", "")
	prepare(t, s, "child", "name")
	target := snapshot.Options{Labels: map[string]string{snapshot.LabelTarget: "name"}}
	long := snapshot.Options{Labels: map[string]string{"long": strings.Repeat("x", 5000)}}

	for what, make := range map[string]func(snapshot.Store, string, string, snapshot.Options) error{
		"Prepare": func(s snapshot.Store, key, parent string, o snapshot.Options) error {
			_, err := s.Prepare(ctx, key, parent, o)
			return err
		},
		"View": func(s snapshot.Store, key, parent string, o snapshot.Options) error {
			_, err := s.View(ctx, key, parent, o)
			return err
		},
	} {
		wantKind(t, what+" of a key that exists, with a bad label", make(s, "key", "", long), errdefs.ErrInvalidArgument)
		wantKind(t, what+" of a key that exists, under no lease", make(ended, "key", "", snapshot.Options{}), errdefs.ErrNotFound)
		wantKind(t, what+" of a key that exists, on a missing parent", make(s, "key", "gone", snapshot.Options{}), errdefs.ErrAlreadyExists)
		wantKind(t, what+" of a key that exists, on an active parent", make(s, "key", "child", snapshot.Options{}), errdefs.ErrAlreadyExists)
		wantKind(t, what+" with a target that exists, on a missing parent", make(s, "new", "gone", target), errdefs.ErrAlreadyExists)
	}
	wantKind(t, "Commit to a name that exists, with a bad label", s.Commit(ctx, "name", "key", long), errdefs.ErrInvalidArgument)
	wantKind(t, "Commit to a name that exists, under no lease", ended.Commit(ctx, "name", "key", snapshot.Options{}), errdefs.ErrNotFound)
	wantKind(t, "Commit of a missing key to a name that exists", s.Commit(ctx, "name", "gone", snapshot.Options{}), errdefs.ErrAlreadyExists)
	wantKind(t, "Commit of what is not active to a name that exists", s.Commit(ctx, "key", "name", snapshot.Options{}), errdefs.ErrAlreadyExists)
	wantSame(t, "List", names(t, s), []string{"child", "key", "name"})
}

func leasedTarget(t *testing.T, f Fixture) {
	s := in(t, f, one)
	committed(t, s, "name", "")
	prepare(t, s, "key", "")
	l := in(t, f, namespace.Scope{Name: "one", Lease: held.ID})
	o := snapshot.Options{Labels: map[string]string{snapshot.LabelTarget: "name"}}
	_, err := l.View(t.Context(), "key", "", o)
	wantKind(t, "View", err, errdefs.ErrAlreadyExists)
	wantSame(t, "resources", resources(t, f, "one", held), []string{"name"})
}

func listAndChange(t *testing.T, f Fixture) {
	s := in(t, f, one)
	const count = 230 // more than two messages
	for i := range count {
		prepare(t, s, fmt.Sprintf("key-%03d", i), "")
	}
	var got []string
	for i, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		if len(got) == 0 {
			// Far behind what has been read of the list, and in between.
			for j := 1; j < count; j += 2 {
				if err := s.Remove(t.Context(), fmt.Sprintf("key-%03d", j)); err != nil {
					t.Fatalf("Remove: %v", err)
				}
				prepare(t, s, fmt.Sprintf("key-%03d-new", j-1), "")
			}
		}
		got = append(got, i.Name)
	}
	if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
		t.Errorf("List is not in order, each once: %q", got)
	}
	for i := 0; i < count; i += 2 {
		if name := fmt.Sprintf("key-%03d", i); !slices.Contains(got, name) {
			t.Errorf("List leaves out %s, which was there all the time", name)
		}
	}
}

func updateUnderLease(t *testing.T, f Fixture) {
	s := in(t, f, one)
	prepare(t, s, "key", "")
	for _, id := range []string{held.ID, "ended"} {
		l := in(t, f, namespace.Scope{Name: "one", Lease: id})
		if _, err := l.Update(t.Context(), snapshot.Info{Name: "key", Labels: map[string]string{"a": id}}); err != nil {
			t.Errorf("Update under lease %s: %v", id, err)
		}
		if _, err := l.Mounts(t.Context(), "key"); err != nil {
			t.Errorf("Mounts under lease %s: %v", id, err)
		}
	}
	if got := resources(t, f, "one", held); len(got) > 0 {
		t.Errorf("resources: %q, want none", got)
	}
}

func cleanup(t *testing.T, f Fixture) {
	s := in(t, f, one)
	committed(t, s, "name", "")
	before := prepare(t, s, "key", "name")
	prepare(t, s, "gone", "name")
	if err := s.Remove(t.Context(), "gone"); err != nil {
		t.Fatalf("Remove: %v", err)
	}
	for range 2 {
		if err := s.Cleanup(t.Context()); err != nil {
			t.Fatalf("Cleanup: %v", err)
		}
	}
	wantSame(t, "List", names(t, s), []string{"key", "name"})
	after, err := s.Mounts(t.Context(), "key")
	if err != nil {
		t.Errorf("Mounts: %v", err)
	}
	wantSame(t, "Mounts", after, before)
}

// meterOf is the fixture's meter, which a store may be itself.
func meterOf(t *testing.T, f Fixture) snapshot.Meter {
	t.Helper()
	if f.Meter != nil {
		return f.Meter
	}
	m, ok := f.Stores.(snapshot.Meter)
	if !ok {
		t.Fatal("the fixture has no meter")
	}
	return m
}

func measured(t *testing.T, f Fixture) {
	s := in(t, f, one)
	l := in(t, f, namespace.Scope{Name: "one", Lease: held.ID})
	committed(t, s, "base", "")
	committed(t, s, "top", "base")
	view(t, s, "look", "base")
	prepare(t, l, "work", "top")
	prepare(t, in(t, f, two), "elsewhere", "")
	if err := f.Members.AddMember(t.Context(), "one", held, memberOf(f, "base")); err != nil {
		t.Fatalf("AddMember: %v", err)
	}
	var want []snapshot.Measured
	for _, keeps := range []struct {
		name     string
		children int
		leases   []string
	}{{"base", 2, []string{held.ID}}, {"look", 0, nil}, {"top", 1, nil}, {"work", 0, []string{held.ID}}} {
		u, err := s.Usage(t.Context(), keeps.name)
		if err != nil {
			t.Fatalf("Usage(%q): %v", keeps.name, err)
		}
		want = append(want, snapshot.Measured{Info: statOf(t, s, keeps.name), Usage: u, Children: keeps.children, Leases: keeps.leases})
	}
	var got []snapshot.Measured
	for m, err := range meterOf(t, f).Usage(t.Context(), one, f.Snapshotter) {
		if err != nil {
			t.Fatalf("Usage: %v", err)
		}
		got = append(got, m)
	}
	wantSame(t, "Usage", got, want)
	for range meterOf(t, f).Usage(t.Context(), one, f.Snapshotter) {
		break // leaving early is fine
	}
}

func measuredNowhere(t *testing.T, f Fixture) {
	for _, name := range []string{"", "no such"} {
		var last error
		for _, err := range meterOf(t, f).Usage(t.Context(), one, name) {
			last = err
		}
		wantKind(t, fmt.Sprintf("Usage in %q", name), last, errdefs.ErrInvalidArgument)
	}
}
