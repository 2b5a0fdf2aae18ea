// Package leasetest has the promises of package lease as tests, and leases and
// members in memory that keep them.
package leasetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

// A Subject is what is tested: leases, and the registry that tells of them.
type Subject struct {
	Leases   lease.Stores
	Registry lease.Registry
}

// Run tests what open returns. It calls open once per promise and expects no
// lease each time.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	for _, p := range promises {
		t.Run(p.name, func(t *testing.T) { p.check(t, open(t)) })
	}
}

var promises = []struct {
	name  string
	check func(*testing.T, Subject)
}{
	{"create then get returns the same lease", createThenGet},
	{"an empty id is replaced by one that is unused", emptyID},
	{"an id that exists is taken", idTaken},
	{"an id is any text", idIsText},
	{"an id too long and a bad label are refused", createRefused},
	{"a label set to nothing is left out", emptyLabel},
	{"a missing lease is not found", missing},
	{"delete ends a lease and its resources", deleteEnds},
	{"list is in order of ids and takes filters", list},
	{"namespaces do not see each other's leases", namespaces},
	{"the scope's own lease means nothing", scopeLease},
	{"a resource is added once, listed in order and taken again", resources},
	{"a resource that is malformed is refused", resourceRefused},
	{"a lease past its time is not there", expired},
	{"a time to come, and one that is no time, end nothing", notExpired},
	{"lookup tells two leases of one id apart", generations},
	{"lookup of no lease is not found, and without an id refused", lookupMissing},
	{"many callers at once get what they made", concurrent},
}

var scope = namespace.Scope{Name: "ns"}

const blob = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func createThenGet(t *testing.T, s Subject) {
	before := time.Now()
	labels := map[string]string{"a": "1", "containerd.io/gc.flat": "x"}
	made, err := s.Leases.In(scope).Create(t.Context(), "l", labels)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	if made.ID != "l" || !cmp.Equal(made.Labels, labels) {
		t.Errorf("Create returned %+v", made)
	}
	if d := made.CreatedAt.Sub(before); d < -time.Second || d > time.Minute {
		t.Errorf("Create: created %v, now is %v", made.CreatedAt, before)
	}
	got, err := s.Leases.In(scope).Get(t.Context(), "l")
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	wantSame(t, got, made)
}

func emptyID(t *testing.T, s Subject) {
	seen := map[string]bool{}
	for range 20 {
		l := create(t, s, "")
		if l.ID == "" || seen[l.ID] {
			t.Fatalf("Create chose %q after %v", l.ID, seen)
		}
		seen[l.ID] = true
	}
}

func idTaken(t *testing.T, s Subject) {
	create(t, s, "l")
	_, err := s.Leases.In(scope).Create(t.Context(), "l", map[string]string{"other": "1"})
	wantKind(t, "Create", err, errdefs.ErrAlreadyExists)
	if l, err := s.Leases.In(scope).Get(t.Context(), "l"); err != nil || l.Labels != nil {
		t.Errorf("Get = %+v, %v; want it as it was", l, err)
	}
}

// texts are ids that a key, a path, a filter or a log line could stumble over.
var texts = []string{
	"a/b", "../..", ".", "a\x00b", "\x00", "\x01", "a\x01\x01b", "ß水", "a b", "a,b==\"c\"", "-", "a\nb", "%s%n",
	strings.Repeat("x", 1024),
}

func idIsText(t *testing.T, s Subject) {
	for _, id := range texts {
		create(t, s, id)
	}
	in := s.Leases.In(scope)
	for _, id := range texts {
		if l, err := in.Get(t.Context(), id); err != nil || l.ID != id {
			t.Errorf("Get(%q) = %+v, %v", id, l, err)
		}
		if err := in.AddResource(t.Context(), id, lease.Resource{ID: id, Type: lease.TypeImages}); err != nil {
			t.Errorf("AddResource(%q): %v", id, err)
		}
		if r, err := s.Registry.Lookup(t.Context(), namespace.Scope{Name: "ns", Lease: id}); err != nil || r.ID != id {
			t.Errorf("Lookup(%q) = %+v, %v", id, r, err)
		}
	}
	for _, id := range texts {
		wantResources(t, in, id, lease.Resource{ID: id, Type: lease.TypeImages})
		if err := in.Delete(t.Context(), id, false); err != nil {
			t.Errorf("Delete(%q): %v", id, err)
		}
	}
	wantIDs(t, in)
}

func createRefused(t *testing.T, s Subject) {
	in := s.Leases.In(scope)
	_, err := in.Create(t.Context(), strings.Repeat("x", 1025), nil)
	wantKind(t, "Create of a long id", err, errdefs.ErrInvalidArgument)
	_, err = in.Create(t.Context(), "l", map[string]string{"": "v"})
	wantKind(t, "Create with an empty key", err, errdefs.ErrInvalidArgument)
	_, err = in.Create(t.Context(), "l", map[string]string{"k": strings.Repeat("v", 4096)})
	wantKind(t, "Create with a long label", err, errdefs.ErrInvalidArgument)
	wantIDs(t, in)
}

func emptyLabel(t *testing.T, s Subject) {
	made, err := s.Leases.In(scope).Create(t.Context(), "l", map[string]string{"a": "", "b": "1"})
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	if want := map[string]string{"b": "1"}; !cmp.Equal(made.Labels, want) {
		t.Errorf("labels = %v, want %v", made.Labels, want)
	}
}

func missing(t *testing.T, s Subject) {
	in, r := s.Leases.In(scope), lease.Resource{ID: "i", Type: lease.TypeImages}
	_, err := in.Get(t.Context(), "l")
	wantKind(t, "Get", err, errdefs.ErrNotFound)
	wantKind(t, "Delete", in.Delete(t.Context(), "l", false), errdefs.ErrNotFound)
	wantKind(t, "Delete of nothing", in.Delete(t.Context(), "", true), errdefs.ErrNotFound)
	wantKind(t, "AddResource", in.AddResource(t.Context(), "l", r), errdefs.ErrNotFound)
	wantKind(t, "DeleteResource", in.DeleteResource(t.Context(), "l", r), errdefs.ErrNotFound)
	_, err = in.ListResources(t.Context(), "l")
	wantKind(t, "ListResources", err, errdefs.ErrNotFound)
}

func deleteEnds(t *testing.T, s Subject) {
	in := s.Leases.In(scope)
	for _, sync := range []bool{false, true} {
		create(t, s, "l")
		for _, r := range everyType {
			if err := in.AddResource(t.Context(), "l", r); err != nil {
				t.Fatalf("AddResource(%v): %v", r, err)
			}
		}
		if err := in.Delete(t.Context(), "l", sync); err != nil {
			t.Fatalf("Delete: %v", err)
		}
		wantKind(t, "second Delete", in.Delete(t.Context(), "l", sync), errdefs.ErrNotFound)
		wantIDs(t, in)
		create(t, s, "l")
		wantResources(t, in, "l")
		if err := in.Delete(t.Context(), "l", sync); err != nil {
			t.Fatalf("Delete: %v", err)
		}
	}
}

func list(t *testing.T, s Subject) {
	in := s.Leases.In(scope)
	wantIDs(t, in)
	for id, labels := range map[string]map[string]string{
		"b": {"color": "red", "containerd.io/x.y": "1"}, "a": {"color": "blue"}, "B": nil, "a/": {"color": "red"},
	} {
		if _, err := in.Create(t.Context(), id, labels); err != nil {
			t.Fatalf("Create(%q): %v", id, err)
		}
	}
	for _, c := range []struct{ filters, want []string }{
		{nil, []string{"B", "a", "a/", "b"}},
		{[]string{""}, []string{"B", "a", "a/", "b"}},
		{[]string{"id==a"}, []string{"a"}},
		{[]string{"id~=/^a/"}, []string{"a", "a/"}},
		{[]string{"labels.color==red"}, []string{"a/", "b"}},
		{[]string{"labels.color!=red"}, []string{"B", "a"}},
		{[]string{"labels.color==red, id==b"}, []string{"b"}},
		{[]string{"labels.color==blue", "id==B"}, []string{"B", "a"}},
		{[]string{`labels."containerd.io/x.y"`}, []string{"b"}},
		{[]string{"created"}, nil},
	} {
		got, err := in.List(t.Context(), c.filters...)
		if err != nil {
			t.Errorf("List(%q): %v", c.filters, err)
		}
		if !slices.Equal(ids(got), c.want) {
			t.Errorf("List(%q) = %q, want %q", c.filters, ids(got), c.want)
		}
	}
	_, err := in.List(t.Context(), "id==a", "labels.")
	wantKind(t, "List with a bad filter", err, errdefs.ErrInvalidArgument)
}

func namespaces(t *testing.T, s Subject) {
	other := s.Leases.In(namespace.Scope{Name: "other"})
	create(t, s, "l")
	_, err := other.Get(t.Context(), "l")
	wantKind(t, "Get elsewhere", err, errdefs.ErrNotFound)
	wantIDs(t, other)
	wantKind(t, "Delete elsewhere", other.Delete(t.Context(), "l", false), errdefs.ErrNotFound)
	_, err = s.Registry.Lookup(t.Context(), namespace.Scope{Name: "other", Lease: "l"})
	wantKind(t, "Lookup elsewhere", err, errdefs.ErrNotFound)
	if _, err := other.Create(t.Context(), "l", nil); err != nil {
		t.Fatalf("Create of the same id elsewhere: %v", err)
	}
	r := lease.Resource{ID: "i", Type: lease.TypeImages}
	if err := other.AddResource(t.Context(), "l", r); err != nil {
		t.Fatalf("AddResource: %v", err)
	}
	wantResources(t, s.Leases.In(scope), "l")
	wantResources(t, other, "l", r)
}

func scopeLease(t *testing.T, s Subject) {
	in := s.Leases.In(namespace.Scope{Name: "ns", Lease: "absent"})
	if _, err := in.Create(t.Context(), "l", nil); err != nil {
		t.Fatalf("Create: %v", err)
	}
	wantIDs(t, in, "l")
}

var everyType = []lease.Resource{
	{ID: blob, Type: lease.TypeContent},
	{ID: "image", Type: lease.TypeImages},
	{ID: "ref", Type: lease.TypeIngests},
	{ID: "key", Type: "snapshots/native"},
	{ID: "key", Type: "snapshots/overlayfs"},
	{ID: "key2", Type: "snapshots/overlayfs"},
}

func resources(t *testing.T, s Subject) {
	in := s.Leases.In(scope)
	create(t, s, "l")
	create(t, s, "l2")
	wantResources(t, in, "l")
	backward := slices.Clone(everyType)
	slices.Reverse(backward)
	for _, r := range slices.Concat(backward, everyType) {
		if err := in.AddResource(t.Context(), "l", r); err != nil {
			t.Fatalf("AddResource(%v): %v", r, err)
		}
	}
	wantResources(t, in, "l", everyType...)
	wantResources(t, in, "l2")
	for i, r := range everyType {
		for range 2 {
			if err := in.DeleteResource(t.Context(), "l", r); err != nil {
				t.Fatalf("DeleteResource(%v): %v", r, err)
			}
		}
		wantResources(t, in, "l", everyType[i+1:]...)
	}
}

func resourceRefused(t *testing.T, s Subject) {
	in := s.Leases.In(scope)
	create(t, s, "l")
	for _, c := range []struct {
		resource lease.Resource
		want     error
	}{
		{lease.Resource{ID: "x", Type: "content"}, errdefs.ErrInvalidArgument},
		{lease.Resource{ID: "sha256:abc", Type: "content"}, errdefs.ErrInvalidArgument},
		{lease.Resource{ID: blob, Type: "content/x"}, errdefs.ErrInvalidArgument},
		{lease.Resource{ID: "x", Type: "snapshots"}, errdefs.ErrInvalidArgument},
		{lease.Resource{ID: "x", Type: "snapshots/"}, errdefs.ErrInvalidArgument},
		{lease.Resource{ID: "x", Type: "snapshots/a/b"}, errdefs.ErrInvalidArgument},
		{lease.Resource{ID: "", Type: "images"}, errdefs.ErrInvalidArgument},
		{lease.Resource{ID: "x", Type: "images/"}, errdefs.ErrInvalidArgument},
		{lease.Resource{ID: "x", Type: "mounts"}, errdefs.ErrNotImplemented},
		{lease.Resource{}, errdefs.ErrNotImplemented},
	} {
		wantKind(t, fmt.Sprintf("AddResource(%v)", c.resource), in.AddResource(t.Context(), "l", c.resource), c.want)
		wantKind(t, fmt.Sprintf("DeleteResource(%v)", c.resource), in.DeleteResource(t.Context(), "l", c.resource), c.want)
	}
	wantResources(t, in, "l")
}

func expired(t *testing.T, s Subject) {
	in := s.Leases.In(scope)
	past := map[string]string{lease.LabelExpire: time.Now().Add(-time.Hour).Format(time.RFC3339)}
	for range 2 {
		made, err := in.Create(t.Context(), "l", past)
		if err != nil || made.ID != "l" {
			t.Fatalf("Create = %+v, %v", made, err)
		}
		wantIDs(t, in)
		_, err = in.Get(t.Context(), "l")
		wantKind(t, "Get", err, errdefs.ErrNotFound)
		_, err = s.Registry.Lookup(t.Context(), namespace.Scope{Name: "ns", Lease: "l"})
		wantKind(t, "Lookup", err, errdefs.ErrNotFound)
		wantKind(t, "AddResource", in.AddResource(t.Context(), "l", lease.Resource{ID: "i", Type: lease.TypeImages}), errdefs.ErrNotFound)
		wantKind(t, "Delete", in.Delete(t.Context(), "l", false), errdefs.ErrNotFound)
	}
	create(t, s, "l")
	wantIDs(t, in, "l")
}

func notExpired(t *testing.T, s Subject) {
	in := s.Leases.In(scope)
	for id, at := range map[string]string{
		"later":   time.Now().Add(time.Hour).Format(time.RFC3339),
		"nanos":   time.Now().Add(time.Hour).Format(time.RFC3339Nano),
		"no time": "soon",
		"far":     "9999-12-31T23:59:59-23:59",
	} {
		if _, err := in.Create(t.Context(), id, map[string]string{lease.LabelExpire: at}); err != nil {
			t.Errorf("Create(%q): %v", id, err)
		}
		if _, err := s.Registry.Lookup(t.Context(), namespace.Scope{Name: "ns", Lease: id}); err != nil {
			t.Errorf("Lookup(%q): %v", id, err)
		}
	}
	wantIDs(t, in, "far", "later", "nanos", "no time")
}

func generations(t *testing.T, s Subject) {
	in, look := s.Leases.In(scope), namespace.Scope{Name: "ns", Lease: "l"}
	var last lease.Ref
	for range 3 {
		create(t, s, "l")
		r, err := s.Registry.Lookup(t.Context(), look)
		if err != nil {
			t.Fatalf("Lookup: %v", err)
		}
		if r.ID != "l" || r.Generation <= last.Generation {
			t.Errorf("Lookup = %+v after %+v", r, last)
		}
		if again, err := s.Registry.Lookup(t.Context(), look); err != nil || again != r {
			t.Errorf("second Lookup = %+v, %v, want %+v", again, err, r)
		}
		last = r
		if err := in.Delete(t.Context(), "l", false); err != nil {
			t.Fatalf("Delete: %v", err)
		}
	}
}

func lookupMissing(t *testing.T, s Subject) {
	_, err := s.Registry.Lookup(t.Context(), namespace.Scope{Name: "ns", Lease: "l"})
	wantKind(t, "Lookup", err, errdefs.ErrNotFound)
	if err == nil || !strings.Contains(err.Error(), "lease does not exist") {
		t.Errorf("Lookup: %v, want the words of containerd", err)
	}
	_, err = s.Registry.Lookup(t.Context(), scope)
	wantKind(t, "Lookup without a lease", err, errdefs.ErrInvalidArgument)
}

func concurrent(t *testing.T, s Subject) {
	const callers, each = 8, 5
	in := s.Leases.In(scope)
	won := make(chan string, callers)
	var all sync.WaitGroup
	for n := range callers {
		all.Go(func() {
			if _, err := in.Create(t.Context(), "one for all", nil); err == nil {
				won <- "one for all"
			} else if !errors.Is(err, errdefs.ErrAlreadyExists) {
				t.Errorf("Create: %v", err)
			}
			for i := range each {
				id := fmt.Sprintf("%d-%d", n, i)
				if _, err := in.Create(t.Context(), id, nil); err != nil {
					t.Errorf("Create(%q): %v", id, err)
				}
				if err := in.AddResource(t.Context(), id, lease.Resource{ID: id, Type: lease.TypeImages}); err != nil {
					t.Errorf("AddResource(%q): %v", id, err)
				}
				if i%2 == 1 {
					if err := in.Delete(t.Context(), id, false); err != nil {
						t.Errorf("Delete(%q): %v", id, err)
					}
				}
			}
		})
	}
	all.Wait()
	close(won)
	if n := len(won); n != 1 {
		t.Errorf("%d callers made the same lease", n)
	}
	left, err := in.List(t.Context())
	if want := callers*(each/2+1) + 1; err != nil || len(left) != want {
		t.Errorf("List = %d leases, %v; want %d", len(left), err, want)
	}
}

func create(t *testing.T, s Subject, id string) lease.Lease {
	t.Helper()
	l, err := s.Leases.In(scope).Create(t.Context(), id, nil)
	if err != nil {
		t.Fatalf("Create(%q): %v", id, err)
	}
	return l
}

func ids(leases []lease.Lease) []string {
	var out []string
	for _, l := range leases {
		out = append(out, l.ID)
	}
	return out
}

func wantIDs(t *testing.T, s lease.Store, want ...string) {
	t.Helper()
	got, err := s.List(t.Context())
	if err != nil || !slices.Equal(ids(got), want) {
		t.Errorf("List = %q, %v; want %q", ids(got), err, want)
	}
}

func wantResources(t *testing.T, s lease.Store, id string, want ...lease.Resource) {
	t.Helper()
	got, err := s.ListResources(t.Context(), id)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("ListResources(%q) = %v, %v; want %v", id, got, err, want)
	}
}

func wantSame(t *testing.T, got, want lease.Lease) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("lease differs (-want +got):\n%s", d)
	}
}

func wantKind(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: %v, want %v", what, err, kind)
	}
}
