// Package snapshottest holds the promises of [snapshot.Store] and a store in
// memory that keeps them.
package snapshottest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
)

// A Fixture is what the promises are tested on.
type Fixture struct {
	Stores      snapshot.Stores
	Snapshotter string          // the one to test
	Traits      snapshot.Traits // what it says of itself
	Members     lease.Members   // the same store's
	Holder      namespace.Holder
	Meter       snapshot.Meter
}

// Run tests the fixtures that open returns. It calls open once per promise and
// expects an empty store each time, which asks leases what exists.
func Run(t *testing.T, open func(t *testing.T, leases lease.Registry) Fixture) {
	for _, p := range promises {
		t.Run(p.name, func(t *testing.T) { p.check(t, open(t, registry{})) })
	}
}

var promises = []struct {
	name  string
	check func(*testing.T, Fixture)
}{
	{"a snapshotter that is not there is refused", noSnapshotter},
	{"stat returns what was prepared, viewed and committed", stat},
	{"a missing snapshot is not found by every method", missing},
	{"a key that exists already exists and is unchanged", taken},
	{"a bad key or label is refused and changes nothing", bad},
	{"keys are opaque", opaque},
	{"a parent that is missing is not found, one that is not committed is refused", badParent},
	{"a target that exists already exists, and nothing is prepared", target},
	{"commit makes the key a name", commit},
	{"commit to a name that exists leaves both", commitTaken},
	{"commit of what is not active is refused", commitInactive},
	{"commit takes its own labels", commitLabels},
	{"the rebase trait is told truly", rebase},
	{"the mapping trait is told truly", remap},
	{"a mapping that is none is refused and nothing is made", badMapping},
	{"mounts are those that prepare and view returned", mounts},
	{"mounts of a committed snapshot are refused", mountsCommitted},
	{"remove then stat is not found, and the key is free", remove},
	{"a snapshot with a child is not removed", removeParent},
	{"a chain is removed from its end, also when commits renamed it", removeChain},
	{"update without fields replaces the labels", updateAll},
	{"update takes only the named labels", updateFields},
	{"update of anything but labels is refused", updateImmutable},
	{"list is in order of the names and of one namespace", list},
	{"filters match kind, name, parent and labels", filters},
	{"a filter that does not parse is refused", badFilter},
	{"a store can be used while it is listed", listAndUse},
	{"namespaces do not see each other", namespaces},
	{"a lease that does not exist is not found and nothing is made", noLease},
	{"what is made under a lease is a resource of it", leased},
	{"what turns out to exist is a resource of the lease", leasedExisting},
	{"members are kept by lease and generation", members},
	{"holdings are the namespaces with snapshots", holdings},
	{"one of many preparers of a key wins", race},
	{"a committed snapshot's usage is kept, another's can be asked", usage},
	{"what is wrong comes before what exists, and that before its parent", precedence},
	{"of a target and a key that exist, the target becomes a resource", leasedTarget},
	{"a snapshot that stays is listed once while others come and go", listAndChange},
	{"an update needs no lease and joins none", updateUnderLease},
	{"a cleanup takes nothing that is there", cleanup},
	{"usage of all is that of each, with what keeps it", measured},
	{"usage of all in a snapshotter that is not there is refused", measuredNowhere},
}

var (
	one = namespace.Scope{Name: "one"}
	two = namespace.Scope{Name: "two"}
)

// registry knows the lease "held" of every namespace.
type registry struct{}

var held = lease.Ref{ID: "held", Generation: 7}

func (registry) Lookup(_ context.Context, scope namespace.Scope) (lease.Ref, error) {
	if scope.Lease != held.ID {
		return lease.Ref{}, fmt.Errorf("lease does not exist: %w", errdefs.ErrNotFound)
	}
	return held, nil
}

func in(t *testing.T, f Fixture, scope namespace.Scope) snapshot.Store {
	t.Helper()
	s, err := f.Stores.In(scope, f.Snapshotter)
	if err != nil {
		t.Fatalf("In(%v, %q): %v", scope, f.Snapshotter, err)
	}
	return s
}

func prepare(t *testing.T, s snapshot.Store, key, parent string) []mount.Mount {
	t.Helper()
	m, err := s.Prepare(t.Context(), key, parent, snapshot.Options{})
	if err != nil {
		t.Fatalf("Prepare(%q, %q): %v", key, parent, err)
	}
	return m
}

func view(t *testing.T, s snapshot.Store, key, parent string) []mount.Mount {
	t.Helper()
	m, err := s.View(t.Context(), key, parent, snapshot.Options{})
	if err != nil {
		t.Fatalf("View(%q, %q): %v", key, parent, err)
	}
	return m
}

func commitTo(t *testing.T, s snapshot.Store, name, key string) {
	t.Helper()
	if err := s.Commit(t.Context(), name, key, snapshot.Options{}); err != nil {
		t.Fatalf("Commit(%q, %q): %v", name, key, err)
	}
}

// committed makes a committed snapshot.
func committed(t *testing.T, s snapshot.Store, name, parent string) {
	t.Helper()
	prepare(t, s, "making "+name, parent)
	commitTo(t, s, name, "making "+name)
}

func statOf(t *testing.T, s snapshot.Store, key string) snapshot.Info {
	t.Helper()
	i, err := s.Stat(t.Context(), key)
	if err != nil {
		t.Fatalf("Stat(%q): %v", key, err)
	}
	return i
}

func names(t *testing.T, s snapshot.Store, filters ...string) []string {
	t.Helper()
	var all []string
	for i, err := range s.List(t.Context(), filters...) {
		if err != nil {
			t.Fatalf("List(%q): %v", filters, err)
		}
		all = append(all, i.Name)
	}
	return all
}

func wantKind(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: got error %v, want %v", what, err, kind)
	}
}

func wantSame(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func noSnapshotter(t *testing.T, f Fixture) {
	for _, name := range []string{"", "no such", f.Snapshotter + "x"} {
		s, err := f.Stores.In(one, name)
		if err == nil {
			// Where the answer is another process's, its first method tells.
			_, err = s.Stat(t.Context(), "x")
		}
		wantKind(t, fmt.Sprintf("snapshotter %q", name), err, errdefs.ErrInvalidArgument)
	}
}

func stat(t *testing.T, f Fixture) {
	s := in(t, f, one)
	o := snapshot.Options{Labels: map[string]string{"a": "1", "empty": ""}}
	if _, err := s.Prepare(t.Context(), "base-key", "", o); err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	want := snapshot.Info{Kind: snapshot.Active, Name: "base-key", Labels: map[string]string{"a": "1"}}
	wantInfo(t, statOf(t, s, "base-key"), want)
	commitTo(t, s, "base", "base-key")
	wantInfo(t, statOf(t, s, "base"), snapshot.Info{Kind: snapshot.Committed, Name: "base"})
	view(t, s, "look", "base")
	wantInfo(t, statOf(t, s, "look"), snapshot.Info{Kind: snapshot.View, Name: "look", Parent: "base"})
	prepare(t, s, "work", "base")
	wantInfo(t, statOf(t, s, "work"), snapshot.Info{Kind: snapshot.Active, Name: "work", Parent: "base"})
}

func wantInfo(t *testing.T, got, want snapshot.Info) {
	t.Helper()
	if got.CreatedAt.IsZero() || !got.CreatedAt.Equal(got.UpdatedAt) {
		t.Errorf("%q was created at %v and updated at %v, want the same moment", got.Name, got.CreatedAt, got.UpdatedAt)
	}
	want.CreatedAt, want.UpdatedAt = got.CreatedAt, got.UpdatedAt
	wantSame(t, "Stat "+want.Name, got, want)
}

func missing(t *testing.T, f Fixture) {
	s := in(t, f, one)
	ctx := t.Context()
	_, err := s.Stat(ctx, "gone")
	wantKind(t, "Stat", err, errdefs.ErrNotFound)
	_, err = s.Update(ctx, snapshot.Info{Name: "gone"})
	wantKind(t, "Update", err, errdefs.ErrNotFound)
	_, err = s.Usage(ctx, "gone")
	wantKind(t, "Usage", err, errdefs.ErrNotFound)
	_, err = s.Mounts(ctx, "gone")
	wantKind(t, "Mounts", err, errdefs.ErrNotFound)
	wantKind(t, "Commit", s.Commit(ctx, "name", "gone", snapshot.Options{}), errdefs.ErrNotFound)
	wantKind(t, "Remove", s.Remove(ctx, "gone"), errdefs.ErrNotFound)
	if got := names(t, s); len(got) > 0 {
		t.Errorf("List: %q, want none", got)
	}
}

func taken(t *testing.T, f Fixture) {
	s := in(t, f, one)
	committed(t, s, "base", "")
	prepare(t, s, "key", "base")
	before := statOf(t, s, "key")
	for _, key := range []string{"key", "base"} {
		_, err := s.Prepare(t.Context(), key, "", snapshot.Options{Labels: map[string]string{"x": "y"}})
		wantKind(t, "Prepare "+key, err, errdefs.ErrAlreadyExists)
		_, err = s.View(t.Context(), key, "base", snapshot.Options{})
		wantKind(t, "View "+key, err, errdefs.ErrAlreadyExists)
	}
	wantSame(t, "Stat", statOf(t, s, "key"), before)
}

func bad(t *testing.T, f Fixture) {
	s := in(t, f, one)
	long := map[string]string{"long": strings.Repeat("x", 4096)}
	prepare(t, s, "active", "")
	for what, o := range map[string]struct {
		key string
		snapshot.Options
	}{
		"empty key":  {"", snapshot.Options{}},
		"long key":   {strings.Repeat("k", 4097), snapshot.Options{}},
		"long label": {"key", snapshot.Options{Labels: long}},
		"empty name": {"key", snapshot.Options{Labels: map[string]string{"": "x"}}},
	} {
		_, err := s.Prepare(t.Context(), o.key, "", o.Options)
		wantKind(t, "Prepare with "+what, err, errdefs.ErrInvalidArgument)
		_, err = s.View(t.Context(), o.key, "", o.Options)
		wantKind(t, "View with "+what, err, errdefs.ErrInvalidArgument)
		wantKind(t, "Commit with "+what, s.Commit(t.Context(), o.key, "active", o.Options), errdefs.ErrInvalidArgument)
	}
	_, err := s.Update(t.Context(), snapshot.Info{Name: "active", Labels: long})
	wantKind(t, "Update with a long label", err, errdefs.ErrInvalidArgument)
	wantSame(t, "List", names(t, s), []string{"active"})
}

func opaque(t *testing.T, f Fixture) {
	s := in(t, f, one)
	keys := []string{
		"/tmp/a b", "..", "../../etc", "a/b/c", "sha256:" + strings.Repeat("0", 64), "é漢", "with\x00nul", "\x01", "line\nbreak",
	}
	for _, k := range keys {
		prepare(t, s, k, "")
		if got := statOf(t, s, k).Name; got != k {
			t.Errorf("Stat(%q) is of %q", k, got)
		}
	}
	slices.Sort(keys)
	wantSame(t, "List", names(t, s), keys)
	for _, k := range keys {
		if err := s.Remove(t.Context(), k); err != nil {
			t.Errorf("Remove(%q): %v", k, err)
		}
	}
}

func badParent(t *testing.T, f Fixture) {
	s := in(t, f, one)
	prepare(t, s, "active", "")
	view(t, s, "view", "")
	for parent, kind := range map[string]error{
		"gone": errdefs.ErrNotFound, "active": errdefs.ErrInvalidArgument, "view": errdefs.ErrInvalidArgument,
	} {
		_, err := s.Prepare(t.Context(), "key", parent, snapshot.Options{})
		wantKind(t, "Prepare on "+parent, err, kind)
		_, err = s.View(t.Context(), "key", parent, snapshot.Options{})
		wantKind(t, "View on "+parent, err, kind)
	}
	wantSame(t, "List", names(t, s), []string{"active", "view"})
}

func target(t *testing.T, f Fixture) {
	s := in(t, f, one)
	o := snapshot.Options{Labels: map[string]string{snapshot.LabelTarget: "chain"}}
	if _, err := s.Prepare(t.Context(), "extract-1", "", o); err != nil {
		t.Fatalf("Prepare with a target that is missing: %v", err)
	}
	commitTo(t, s, "chain", "extract-1")
	_, err := s.Prepare(t.Context(), "extract-2", "", o)
	wantKind(t, "Prepare with a target that exists", err, errdefs.ErrAlreadyExists)
	wantSame(t, "List", names(t, s), []string{"chain"})
}

func commit(t *testing.T, f Fixture) {
	s := in(t, f, one)
	committed(t, s, "base", "")
	prepare(t, s, "key", "base")
	commitTo(t, s, "name", "key")
	_, err := s.Stat(t.Context(), "key")
	wantKind(t, "Stat of the key", err, errdefs.ErrNotFound)
	if i := statOf(t, s, "name"); i.Kind != snapshot.Committed || i.Parent != "base" {
		t.Errorf("Stat: %+v, want a committed child of base", i)
	}
	prepare(t, s, "key", "name")
	// The key itself is a name like any other.
	prepare(t, s, "same", "")
	wantKind(t, "Commit to its own key", s.Commit(t.Context(), "same", "same", snapshot.Options{}), errdefs.ErrAlreadyExists)
}

func commitTaken(t *testing.T, f Fixture) {
	s := in(t, f, one)
	committed(t, s, "name", "")
	prepare(t, s, "key", "")
	before := []snapshot.Info{statOf(t, s, "key"), statOf(t, s, "name")}
	wantKind(t, "Commit", s.Commit(t.Context(), "name", "key", snapshot.Options{}), errdefs.ErrAlreadyExists)
	wantSame(t, "Stat", []snapshot.Info{statOf(t, s, "key"), statOf(t, s, "name")}, before)
}

func commitInactive(t *testing.T, f Fixture) {
	s := in(t, f, one)
	committed(t, s, "base", "")
	view(t, s, "view", "base")
	for _, key := range []string{"base", "view"} {
		wantKind(t, "Commit of "+key, s.Commit(t.Context(), "name", key, snapshot.Options{}), errdefs.ErrFailedPrecondition)
	}
	wantSame(t, "List", names(t, s), []string{"base", "view"})
}

func commitLabels(t *testing.T, f Fixture) {
	s := in(t, f, one)
	if _, err := s.Prepare(t.Context(), "key", "", snapshot.Options{Labels: map[string]string{"old": "1"}}); err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	o := snapshot.Options{Labels: map[string]string{"new": "2", "none": ""}}
	if err := s.Commit(t.Context(), "name", "key", o); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	wantSame(t, "labels", statOf(t, s, "name").Labels, map[string]string{"new": "2"})
}

func rebase(t *testing.T, f Fixture) {
	s := in(t, f, one)
	committed(t, s, "base", "")
	committed(t, s, "other", "")
	prepare(t, s, "free", "")
	err := s.Commit(t.Context(), "name", "free", snapshot.Options{Parent: "base"})
	if !f.Traits.Rebase {
		wantKind(t, "Commit on a parent", err, errdefs.ErrNotImplemented)
		return
	}
	if err != nil {
		t.Fatalf("Commit on a parent: %v", err)
	}
	if got := statOf(t, s, "name").Parent; got != "base" {
		t.Errorf("parent after the rebase: %q, want base", got)
	}
	wantKind(t, "Remove of the new parent", s.Remove(t.Context(), "base"), errdefs.ErrFailedPrecondition)

	prepare(t, s, "bound", "base")
	err = s.Commit(t.Context(), "moved", "bound", snapshot.Options{Parent: "other"})
	wantKind(t, "Commit on another parent", err, errdefs.ErrInvalidArgument)
	if err := s.Commit(t.Context(), "stays", "bound", snapshot.Options{Parent: "base"}); err != nil {
		t.Errorf("Commit on the parent that it has: %v", err)
	}
	prepare(t, s, "third", "")
	err = s.Commit(t.Context(), "lost", "third", snapshot.Options{Parent: "gone"})
	wantKind(t, "Commit on a missing parent", err, errdefs.ErrNotFound)
	statOf(t, s, "third")
}

func mounts(t *testing.T, f Fixture) {
	s := in(t, f, one)
	committed(t, s, "base", "")
	committed(t, s, "second", "base")
	for key, want := range map[string][]mount.Mount{
		"a0": prepare(t, s, "a0", ""),
		"a1": prepare(t, s, "a1", "base"),
		"a2": prepare(t, s, "a2", "second"),
		"v0": view(t, s, "v0", ""),
		"v1": view(t, s, "v1", "base"),
		"v2": view(t, s, "v2", "second"),
	} {
		if len(want) == 0 {
			t.Errorf("%s: nothing to mount", key)
		}
		got, err := s.Mounts(t.Context(), key)
		if err != nil {
			t.Errorf("Mounts(%q): %v", key, err)
		}
		wantSame(t, "Mounts "+key, got, want)
		// The last is what is used; those before may be what it stacks.
		if len(got) > 0 && key[0] == 'a' && slices.Contains(got[len(got)-1].Options, "ro") {
			t.Errorf("Mounts(%q) are read-only: %v", key, got)
		}
	}
}

func mountsCommitted(t *testing.T, f Fixture) {
	s := in(t, f, one)
	committed(t, s, "base", "")
	_, err := s.Mounts(t.Context(), "base")
	wantKind(t, "Mounts", err, errdefs.ErrFailedPrecondition)
}

func remove(t *testing.T, f Fixture) {
	s := in(t, f, one)
	committed(t, s, "base", "")
	for range 2 {
		first := prepare(t, s, "key", "base")
		if err := s.Remove(t.Context(), "key"); err != nil {
			t.Fatalf("Remove: %v", err)
		}
		_, err := s.Stat(t.Context(), "key")
		wantKind(t, "Stat", err, errdefs.ErrNotFound)
		second := view(t, s, "key", "")
		if cmp.Equal(first, second) {
			t.Errorf("a new snapshot has the mounts %v of a removed one", second)
		}
		if err := s.Remove(t.Context(), "key"); err != nil {
			t.Fatalf("Remove: %v", err)
		}
	}
}

func removeParent(t *testing.T, f Fixture) {
	s := in(t, f, one)
	committed(t, s, "base", "")
	for _, make := range []func(*testing.T, snapshot.Store, string, string) []mount.Mount{prepare, view} {
		make(t, s, "child", "base")
		err := s.Remove(t.Context(), "base")
		wantKind(t, "Remove", err, errdefs.ErrFailedPrecondition)
		if err != nil && !strings.Contains(err.Error(), "cannot remove snapshot with child") {
			t.Errorf("Remove: %v: want the words that clients look for", err)
		}
		statOf(t, s, "base")
		if err := s.Remove(t.Context(), "child"); err != nil {
			t.Fatalf("Remove of the child: %v", err)
		}
	}
	if err := s.Remove(t.Context(), "base"); err != nil {
		t.Errorf("Remove of a parent whose children are gone: %v", err)
	}
}

func removeChain(t *testing.T, f Fixture) {
	s := in(t, f, one)
	parent := ""
	var chain []string
	for i := range 5 {
		name := fmt.Sprint("layer", i)
		committed(t, s, name, parent)
		chain = append(chain, name)
		parent = name
	}
	for _, name := range chain[:4] {
		wantKind(t, "Remove "+name, s.Remove(t.Context(), name), errdefs.ErrFailedPrecondition)
	}
	for _, name := range slices.Backward(chain) {
		if err := s.Remove(t.Context(), name); err != nil {
			t.Fatalf("Remove(%q): %v", name, err)
		}
	}
	if got := names(t, s); len(got) > 0 {
		t.Errorf("List: %q, want none", got)
	}
}

func updateAll(t *testing.T, f Fixture) {
	s := in(t, f, one)
	committed(t, s, "base", "")
	prepare(t, s, "active", "base")
	for _, key := range []string{"base", "active"} {
		before := statOf(t, s, key)
		change := snapshot.Info{Name: key, Parent: "nonsense", Kind: snapshot.View, Labels: map[string]string{"a": "1", "b": "2", "none": ""}}
		got, err := s.Update(t.Context(), change)
		if err != nil {
			t.Fatalf("Update(%q): %v", key, err)
		}
		want := before
		want.Labels = map[string]string{"a": "1", "b": "2"}
		want.UpdatedAt = got.UpdatedAt
		if !got.UpdatedAt.After(before.UpdatedAt) {
			t.Errorf("Update(%q) at %v, want later than %v", key, got.UpdatedAt, before.UpdatedAt)
		}
		wantSame(t, "Update", got, want)
		wantSame(t, "Stat", statOf(t, s, key), want)
	}
}

func updateFields(t *testing.T, f Fixture) {
	s := in(t, f, one)
	prepare(t, s, "key", "")
	if _, err := s.Update(t.Context(), snapshot.Info{Name: "key", Labels: map[string]string{"a": "1", "b": "2", "x.y/z": "3"}}); err != nil {
		t.Fatalf("Update: %v", err)
	}
	got, err := s.Update(t.Context(), snapshot.Info{Name: "key", Labels: map[string]string{"a": "new", "other": "no"}}, "labels.a", "labels.x.y/z")
	if err != nil {
		t.Fatalf("Update: %v", err)
	}
	wantSame(t, "labels", got.Labels, map[string]string{"a": "new", "b": "2"})
	got, err = s.Update(t.Context(), snapshot.Info{Name: "key"}, "labels")
	if err != nil || len(got.Labels) > 0 {
		t.Errorf("Update: labels %v, %v, want none", got.Labels, err)
	}
}

func updateImmutable(t *testing.T, f Fixture) {
	s := in(t, f, one)
	prepare(t, s, "key", "")
	before := statOf(t, s, "key")
	for _, field := range []string{"parent", "kind", "name", "labels.", "created_at"} {
		_, err := s.Update(t.Context(), snapshot.Info{Name: "key", Labels: map[string]string{"a": "1"}}, "labels.a", field)
		wantKind(t, "Update of "+field, err, errdefs.ErrInvalidArgument)
	}
	wantSame(t, "Stat", statOf(t, s, "key"), before)
}

func list(t *testing.T, f Fixture) {
	s := in(t, f, one)
	var want []string
	for i := range 250 { // more than one message
		key := fmt.Sprintf("key-%03d", (i*7)%250)
		prepare(t, s, key, "")
		want = append(want, key)
	}
	slices.Sort(want)
	prepare(t, in(t, f, two), "key-0005", "")
	wantSame(t, "List", names(t, s), want)
	for range s.List(t.Context()) {
		break // leaving early is fine
	}
}

func filters(t *testing.T, f Fixture) {
	s := in(t, f, one)
	committed(t, s, "p", "")
	prepare(t, s, "a", "p")
	view(t, s, "v", "p")
	if _, err := s.Prepare(t.Context(), "l", "", snapshot.Options{Labels: map[string]string{"x/y.z": "1"}}); err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	for _, c := range []struct{ filters, want []string }{
		{nil, []string{"a", "l", "p", "v"}},
		{[]string{"kind==active"}, []string{"a", "l"}},
		{[]string{"kind==view"}, []string{"v"}},
		{[]string{"kind==committed"}, []string{"p"}},
		{[]string{"name==p", "name==a"}, []string{"a", "p"}},
		{[]string{"parent==p"}, []string{"a", "v"}},
		{[]string{`parent!=""`}, []string{"a", "v"}},
		{[]string{`labels."x/y.z"`}, []string{"l"}},
		{[]string{`labels."x/y.z"==1,kind==active`}, []string{"l"}},
		{[]string{`labels."x/y.z"==2`}, nil},
	} {
		wantSame(t, fmt.Sprintf("List(%q)", c.filters), names(t, s, c.filters...), c.want)
	}
}

func badFilter(t *testing.T, f Fixture) {
	s := in(t, f, one)
	prepare(t, s, "key", "")
	var last error
	for _, err := range s.List(t.Context(), "name==key", "=broken=") {
		last = err
	}
	wantKind(t, "List", last, errdefs.ErrInvalidArgument)
}

func listAndUse(t *testing.T, f Fixture) {
	s := in(t, f, one)
	for i := range 5 {
		prepare(t, s, fmt.Sprint("key", i), "")
	}
	for i, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		if got := statOf(t, s, i.Name); !cmp.Equal(got, i) {
			t.Errorf("Stat(%q): %+v, want what List yielded: %+v", i.Name, got, i)
		}
		if err := s.Remove(t.Context(), i.Name); err != nil {
			t.Errorf("Remove(%q): %v", i.Name, err)
		}
	}
}

func namespaces(t *testing.T, f Fixture) {
	a, b := in(t, f, one), in(t, f, two)
	committed(t, a, "base", "")
	_, err := b.Stat(t.Context(), "base")
	wantKind(t, "Stat from the other namespace", err, errdefs.ErrNotFound)
	_, err = b.Prepare(t.Context(), "key", "base", snapshot.Options{})
	wantKind(t, "Prepare on the other namespace's", err, errdefs.ErrNotFound)
	committed(t, b, "base", "")
	prepare(t, b, "child", "base")
	if err := a.Remove(t.Context(), "base"); err != nil {
		t.Errorf("Remove of what has a child in the other namespace only: %v", err)
	}
	statOf(t, b, "base")
}

func noLease(t *testing.T, f Fixture) {
	s := in(t, f, one)
	prepare(t, s, "active", "")
	ended := in(t, f, namespace.Scope{Name: "one", Lease: "ended"})
	_, err := ended.Prepare(t.Context(), "key", "", snapshot.Options{})
	wantKind(t, "Prepare", err, errdefs.ErrNotFound)
	_, err = ended.View(t.Context(), "key", "", snapshot.Options{})
	wantKind(t, "View", err, errdefs.ErrNotFound)
	wantKind(t, "Commit", ended.Commit(t.Context(), "name", "active", snapshot.Options{}), errdefs.ErrNotFound)
	wantSame(t, "List", names(t, s), []string{"active"})
	// Only what creates asks for the lease.
	if err := ended.Remove(t.Context(), "active"); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

func resources(t *testing.T, f Fixture, ns string, l lease.Ref) []string {
	t.Helper()
	all, err := f.Members.ListMembers(t.Context(), ns, l)
	if err != nil {
		t.Fatalf("ListMembers: %v", err)
	}
	var ids []string
	for _, r := range all {
		if want := "snapshots/" + f.Snapshotter; r.Type != want {
			t.Errorf("resource %q is of type %q, want %q", r.ID, r.Type, want)
		}
		ids = append(ids, r.ID)
	}
	return ids
}

func leased(t *testing.T, f Fixture) {
	s := in(t, f, namespace.Scope{Name: "one", Lease: held.ID})
	prepare(t, s, "b", "")
	view(t, s, "a", "")
	prepare(t, in(t, f, one), "free", "")
	wantSame(t, "resources", resources(t, f, "one", held), []string{"a", "b"})
	// A commit gives the name the place of the key.
	commitTo(t, s, "c", "b")
	wantSame(t, "resources after a commit", resources(t, f, "one", held), []string{"a", "c"})
	if err := s.Remove(t.Context(), "a"); err != nil {
		t.Fatalf("Remove: %v", err)
	}
	wantSame(t, "resources after a removal", resources(t, f, "one", held), []string{"c"})
}

func leasedExisting(t *testing.T, f Fixture) {
	s := in(t, f, one)
	committed(t, s, "name", "")
	prepare(t, s, "key", "")
	prepare(t, s, "other", "")
	l := in(t, f, namespace.Scope{Name: "one", Lease: held.ID})
	_, err := l.Prepare(t.Context(), "key", "", snapshot.Options{})
	wantKind(t, "Prepare", err, errdefs.ErrAlreadyExists)
	wantSame(t, "resources", resources(t, f, "one", held), []string{"key"})
	_, err = l.Prepare(t.Context(), "new", "", snapshot.Options{Labels: map[string]string{snapshot.LabelTarget: "name"}})
	wantKind(t, "Prepare with a target", err, errdefs.ErrAlreadyExists)
	wantSame(t, "resources", resources(t, f, "one", held), []string{"key", "name"})
	if err := f.Members.DropMembers(t.Context(), "one", held); err != nil {
		t.Fatalf("DropMembers: %v", err)
	}
	wantKind(t, "Commit", l.Commit(t.Context(), "name", "other", snapshot.Options{}), errdefs.ErrAlreadyExists)
	wantSame(t, "resources", resources(t, f, "one", held), []string{"name"})
}

func memberOf(f Fixture, name string) lease.Resource {
	return lease.Resource{ID: name, Type: "snapshots/" + f.Snapshotter}
}

func members(t *testing.T, f Fixture) {
	ctx := t.Context()
	r := memberOf(f, "anything/at all")
	next := lease.Ref{ID: held.ID, Generation: held.Generation + 1}
	for range 2 {
		if err := f.Members.AddMember(ctx, "one", held, r); err != nil {
			t.Fatalf("AddMember: %v", err)
		}
	}
	wantSame(t, "resources", resources(t, f, "one", held), []string{r.ID})
	for what, got := range map[string][]string{
		"of the next lease of that id": resources(t, f, "one", next),
		"of another namespace":         resources(t, f, "two", held),
	} {
		if len(got) > 0 {
			t.Errorf("resources %s: %q, want none", what, got)
		}
	}
	for range 2 {
		if err := f.Members.RemoveMember(ctx, "one", held, r); err != nil {
			t.Fatalf("RemoveMember: %v", err)
		}
	}
	if got := resources(t, f, "one", held); len(got) > 0 {
		t.Errorf("resources after RemoveMember: %q, want none", got)
	}
	for _, l := range []lease.Ref{held, next} {
		if err := f.Members.AddMember(ctx, "one", l, r); err != nil {
			t.Fatalf("AddMember: %v", err)
		}
	}
	if err := f.Members.DropMembers(ctx, "one", held); err != nil {
		t.Fatalf("DropMembers: %v", err)
	}
	if got := resources(t, f, "one", held); len(got) > 0 {
		t.Errorf("resources after DropMembers: %q, want none", got)
	}
	wantSame(t, "resources of the next lease", resources(t, f, "one", next), []string{r.ID})
}

func holdings(t *testing.T, f Fixture) {
	want := func(names ...string) {
		t.Helper()
		got, err := f.Holder.Holdings(t.Context())
		if err != nil {
			t.Fatalf("Holdings: %v", err)
		}
		var all []namespace.Holding
		for _, n := range names {
			all = append(all, namespace.Holding{Namespace: n, Kind: "snapshots", Of: f.Snapshotter})
		}
		if !slices.Equal(got, all) {
			t.Errorf("Holdings: %v, want %v", got, all)
		}
	}
	want()
	prepare(t, in(t, f, two), "a", "")
	prepare(t, in(t, f, one), "a", "")
	prepare(t, in(t, f, one), "b", "")
	want("one", "two")
	if err := in(t, f, two).Remove(t.Context(), "a"); err != nil {
		t.Fatalf("Remove: %v", err)
	}
	want("one")
}

func race(t *testing.T, f Fixture) {
	s := in(t, f, one)
	committed(t, s, "base", "")
	const callers = 16
	errs := make([]error, callers)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() { _, errs[i] = s.Prepare(t.Context(), "key", "base", snapshot.Options{}) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		wantKind(t, "Prepare", err, errdefs.ErrAlreadyExists)
	}
	if won != 1 {
		t.Errorf("%d of %d won, want one", won, callers)
	}
	wantSame(t, "List", names(t, s), []string{"base", "key"})
}

func usage(t *testing.T, f Fixture) {
	s := in(t, f, one)
	prepare(t, s, "key", "")
	active, err := s.Usage(t.Context(), "key")
	if err != nil {
		t.Fatalf("Usage: %v", err)
	}
	commitTo(t, s, "name", "key")
	got, err := s.Usage(t.Context(), "name")
	if err != nil {
		t.Fatalf("Usage: %v", err)
	}
	wantSame(t, "Usage of the committed", got, active)
	view(t, s, "view", "name")
	if _, err := s.Usage(t.Context(), "view"); err != nil {
		t.Errorf("Usage of a view: %v", err)
	}
}
