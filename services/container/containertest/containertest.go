// Package containertest holds the promises of [container.Store] and a store in
// memory that keeps them.
package containertest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/typed"
)

// Run tests the stores that open returns. It calls open once per promise and
// expects an empty store each time.
func Run(t *testing.T, open func(t *testing.T) container.Stores) {
	for _, p := range promises {
		t.Run(p.name, func(t *testing.T) { p.check(t, open(t)) })
	}
}

var promises = []struct {
	name  string
	check func(*testing.T, container.Stores)
}{
	{"get returns what was created", createThenGet},
	{"a missing container is not found by every method", missing},
	{"a taken id already exists and is unchanged", createTwice},
	{"a bad container is refused and changes nothing", createBad},
	{"an id that climbs is refused", climbingID},
	{"a label set to nothing is not kept", emptyLabel},
	{"a label that is too long is refused, many labels are not", hugeLabels},
	{"a large spec comes back byte for byte", largeSpec},
	{"list is in byte order of the ids", listOrder},
	{"list is of one namespace", listNamespace},
	{"filters match id, runtime, image and labels", filters},
	{"a filter that does not parse is refused", badFilter},
	{"update without fields replaces what may change", updateAll},
	{"update without fields keeps extensions not given", updateKeepsExtensions},
	{"update may not change snapshotter or runtime", updateImmutable},
	{"update takes only the named fields", updateFields},
	{"update of an unknown field is refused and changes nothing", updateUnknown},
	{"update moves the time of update only", updateTimes},
	{"what a caller does to a result changes nothing", results},
	{"delete then get is not found, and the id is free", deleteThenCreate},
	{"one of many creators of an id wins", createRace},
	{"updates of many labels at once are all kept", updateRace},
}

var (
	one = namespace.Scope{Name: "one"}
	two = namespace.Scope{Name: "two"}
)

func sample(id string) container.Container {
	return container.Container{
		ID:          id,
		Labels:      map[string]string{"a": "1", "containerd.io/x.y": "dots and a slash"},
		Image:       "registry.example/app:1",
		Runtime:     container.Runtime{Name: "io.containerd.runc.v2", Options: &typed.Value{URL: "containerd.runc.v1.Options", Data: []byte{1, 2, 0, 255}}},
		Spec:        &typed.Value{URL: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Data: []byte(`{"ociVersion": "1.0.2",  "x":"é"}`)},
		Snapshotter: "overlayfs",
		SnapshotKey: "key of " + id,
		SandboxID:   "pod",
		Extensions:  map[string]typed.Value{"ext": {URL: "some.Type", Data: []byte("data")}},
	}
}

func create(t *testing.T, s container.Store, c container.Container) container.Container {
	t.Helper()
	got, err := s.Create(t.Context(), c)
	if err != nil {
		t.Fatalf("Create(%q): %v", c.ID, err)
	}
	return got
}

func get(t *testing.T, s container.Store, id string) container.Container {
	t.Helper()
	c, err := s.Get(t.Context(), id)
	if err != nil {
		t.Fatalf("Get(%q): %v", id, err)
	}
	return c
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

func createThenGet(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	made := create(t, s, sample("c1"))
	if made.CreatedAt.IsZero() || !made.CreatedAt.Equal(made.UpdatedAt) {
		t.Errorf("created %v, updated %v: want the same moment", made.CreatedAt, made.UpdatedAt)
	}
	wantSame(t, "Get", get(t, s, "c1"), made)
	want := sample("c1")
	want.CreatedAt, want.UpdatedAt = made.CreatedAt, made.UpdatedAt
	wantSame(t, "Create", made, want)
}

func missing(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	create(t, stores.In(two), sample("c1"))
	_, err := s.Get(t.Context(), "c1")
	wantKind(t, "Get", err, errdefs.ErrNotFound)
	_, err = s.Update(t.Context(), sample("c1"))
	wantKind(t, "Update", err, errdefs.ErrNotFound)
	_, err = s.Update(t.Context(), sample("c1"), "labels.a")
	wantKind(t, "Update of a field", err, errdefs.ErrNotFound)
	wantKind(t, "Delete", s.Delete(t.Context(), "c1"), errdefs.ErrNotFound)
}

func createTwice(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	first := create(t, s, sample("c1"))
	other := sample("c1")
	other.Image = "another"
	_, err := s.Create(t.Context(), other)
	wantKind(t, "second Create", err, errdefs.ErrAlreadyExists)
	wantSame(t, "Get", get(t, s, "c1"), first)
	create(t, stores.In(two), other)
}

func createBad(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	for name, spoil := range map[string]func(*container.Container){
		"no id":                    func(c *container.Container) { c.ID = "" },
		"id of 77 bytes":           func(c *container.Container) { c.ID = strings.Repeat("x", 77) },
		"empty extension key":      func(c *container.Container) { c.Extensions = map[string]typed.Value{"": {URL: "u"}} },
		"empty label key":          func(c *container.Container) { c.Labels = map[string]string{"": "v"} },
		"no runtime":               func(c *container.Container) { c.Runtime = container.Runtime{} },
		"no spec":                  func(c *container.Container) { c.Spec = nil },
		"snapshot without a store": func(c *container.Container) { c.Snapshotter = "" },
	} {
		c := sample("bad")
		spoil(&c)
		_, err := s.Create(t.Context(), c)
		wantKind(t, name, err, errdefs.ErrInvalidArgument)
	}
	if all, err := s.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("List: %d containers, %v; want none", len(all), err)
	}
}

func climbingID(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	for _, id := range []string{"..", "../x", "a/../b", "/etc", "a/b", ".hidden", "a..b", "a\x00b", "a b", "a\n", "é"} {
		_, err := s.Create(t.Context(), sample(id))
		wantKind(t, fmt.Sprintf("Create(%q)", id), err, errdefs.ErrInvalidArgument)
	}
}

func emptyLabel(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	c := sample("c1")
	c.Labels = map[string]string{"kept": "1", "gone": ""}
	wantSame(t, "labels of Create", create(t, s, c).Labels, map[string]string{"kept": "1"})
	c.Labels = map[string]string{"kept": "", "new": "2"}
	got, err := s.Update(t.Context(), c, "labels.kept", "labels.new")
	if err != nil {
		t.Fatalf("Update: %v", err)
	}
	wantSame(t, "labels of Update", got.Labels, map[string]string{"new": "2"})
}

func hugeLabels(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	c := sample("c1")
	c.Labels = map[string]string{"k": strings.Repeat("x", 4096)}
	_, err := s.Create(t.Context(), c)
	wantKind(t, "label of 4097 bytes", err, errdefs.ErrInvalidArgument)
	c.Labels = make(map[string]string)
	for i := range 500 {
		c.Labels[fmt.Sprintf("key-%03d", i)] = strings.Repeat("x", 4089)
	}
	create(t, s, c)
	wantSame(t, "labels of 2 MiB", get(t, s, "c1").Labels, c.Labels)
}

func largeSpec(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	c := sample("c1")
	c.Spec.Data = fmt.Appendf(nil, `{"env": %q}`, strings.Repeat("\x00\xff", 1<<20))
	create(t, s, c)
	if got := get(t, s, "c1").Spec.Data; string(got) != string(c.Spec.Data) {
		t.Errorf("%d bytes of spec came back as %d other ones", len(c.Spec.Data), len(got))
	}
}

func ids(all []container.Container) []string {
	out := []string{}
	for _, c := range all {
		out = append(out, c.ID)
	}
	return out
}

func listOrder(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	for _, id := range []string{"b", "a-1", "a", "a.1", "B", "a1", "0", "a_1"} {
		create(t, s, sample(id))
	}
	all, err := s.List(t.Context())
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	wantSame(t, "List", ids(all), []string{"0", "B", "a", "a-1", "a.1", "a1", "a_1", "b"})
	wantSame(t, "container of List", all[2], get(t, s, "a"))
}

func listNamespace(t *testing.T, stores container.Stores) {
	create(t, stores.In(one), sample("in-one"))
	create(t, stores.In(two), sample("in-two"))
	for scope, want := range map[namespace.Scope][]string{one: {"in-one"}, two: {"in-two"}, {Name: "on"}: {}, {Name: "one-1"}: {}} {
		all, err := stores.In(scope).List(t.Context())
		if err != nil {
			t.Fatalf("List in %q: %v", scope.Name, err)
		}
		wantSame(t, "List in "+scope.Name, ids(all), want)
	}
}

func filters(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	a, b := sample("a"), sample("b")
	b.Labels = map[string]string{"tier": "web"}
	b.Image = "other"
	b.Runtime.Name = "io.containerd.kata.v2"
	create(t, s, a)
	create(t, s, b)
	for _, c := range []struct {
		filters []string
		want    []string
	}{
		{nil, []string{"a", "b"}},
		{[]string{""}, []string{"a", "b"}},
		{[]string{"id==a"}, []string{"a"}},
		{[]string{"id==a", "id==b"}, []string{"a", "b"}},
		{[]string{"id==a,id==b"}, []string{}},
		{[]string{"image~=^registry"}, []string{"a"}},
		{[]string{"runtime.name==io.containerd.kata.v2"}, []string{"b"}},
		{[]string{`labels."containerd.io/x.y"`}, []string{"a"}},
		{[]string{`labels."tier"==web`}, []string{"b"}},
		{[]string{"labels.tier!=web"}, []string{"a"}},
		{[]string{"runtime"}, []string{}},
		{[]string{"spec"}, []string{}},
		{[]string{"id~=["}, []string{}},
	} {
		all, err := s.List(t.Context(), c.filters...)
		if err != nil {
			t.Errorf("List(%q): %v", c.filters, err)
			continue
		}
		wantSame(t, fmt.Sprintf("List(%q)", c.filters), ids(all), c.want)
	}
}

func badFilter(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	create(t, s, sample("a"))
	for _, f := range []string{"id==", "==a", "id=a", `labels."x`, "id==a,", "id==a id==b"} {
		_, err := s.List(t.Context(), f)
		wantKind(t, fmt.Sprintf("List(%q)", f), err, errdefs.ErrInvalidArgument)
	}
}

func updateAll(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	create(t, s, sample("c1"))
	c := sample("c1")
	c.Labels = map[string]string{"only": "this", "not": ""}
	c.Image = "new image"
	c.Spec = &typed.Value{URL: "other", Data: []byte("{}")}
	c.SnapshotKey = "new key"
	c.SandboxID = "another pod"
	c.Runtime.Options = nil
	got, err := s.Update(t.Context(), c)
	if err != nil {
		t.Fatalf("Update: %v", err)
	}
	want := sample("c1")
	want.Labels = map[string]string{"only": "this"}
	want.Image, want.Spec, want.SnapshotKey = c.Image, c.Spec, c.SnapshotKey
	want.CreatedAt, want.UpdatedAt = got.CreatedAt, got.UpdatedAt
	wantSame(t, "Update", got, want)
	wantSame(t, "Get", get(t, s, "c1"), want)
}

func updateKeepsExtensions(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	create(t, s, sample("c1"))
	c := sample("c1")
	c.Extensions = map[string]typed.Value{"new": {URL: "N", Data: []byte("n")}}
	got, err := s.Update(t.Context(), c)
	if err != nil {
		t.Fatalf("Update: %v", err)
	}
	wantSame(t, "extensions", got.Extensions, map[string]typed.Value{
		"ext": {URL: "some.Type", Data: []byte("data")},
		"new": {URL: "N", Data: []byte("n")},
	})
	c.Extensions = map[string]typed.Value{"ext": {URL: "E"}, "left": {URL: "L"}}
	if got, err = s.Update(t.Context(), c, "extensions.ext", "extensions.absent"); err != nil {
		t.Fatalf("Update: %v", err)
	}
	wantSame(t, "extensions after ext", got.Extensions, map[string]typed.Value{
		"ext": {URL: "E"},
		"new": {URL: "N", Data: []byte("n")},
	})
}

func updateImmutable(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	made := create(t, s, sample("c1"))
	c := sample("c1")
	c.Snapshotter = "native"
	_, err := s.Update(t.Context(), c)
	wantKind(t, "another snapshotter", err, errdefs.ErrInvalidArgument)
	c = sample("c1")
	c.Runtime.Name = "io.containerd.kata.v2"
	_, err = s.Update(t.Context(), c)
	wantKind(t, "another runtime", err, errdefs.ErrInvalidArgument)
	wantSame(t, "Get", get(t, s, "c1"), made)
}

func updateFields(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	create(t, s, sample("c1"))
	c := container.Container{
		ID:          "c1",
		Labels:      map[string]string{"a": "2", "containerd.io/x.y": "z", "more": "m"},
		Image:       "new image",
		Spec:        &typed.Value{URL: "other"},
		SnapshotKey: "new key",
		Runtime:     container.Runtime{Name: "ignored"},
		Snapshotter: "ignored",
	}
	want := sample("c1")
	for _, step := range []struct {
		field string
		apply func()
	}{
		{"labels.containerd.io/x.y", func() { want.Labels["containerd.io/x.y"] = "z" }},
		{"image", func() { want.Image = c.Image }},
		{"spec", func() { want.Spec = c.Spec }},
		{"snapshotkey", func() { want.SnapshotKey = c.SnapshotKey }},
		{"labels", func() { want.Labels = c.Labels }},
	} {
		got, err := s.Update(t.Context(), c, step.field)
		if err != nil {
			t.Fatalf("Update of %q: %v", step.field, err)
		}
		step.apply()
		want.CreatedAt, want.UpdatedAt = got.CreatedAt, got.UpdatedAt
		wantSame(t, "Update of "+step.field, got, want)
	}
}

func updateUnknown(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	made := create(t, s, sample("c1"))
	c := sample("c1")
	c.Image = "new image"
	for _, f := range []string{"id", "runtime.name", "snapshotter", "labels.", "snapshot_key", "Image", "", "extensions.", "created_at"} {
		if f == "extensions." {
			c.Extensions = map[string]typed.Value{"": {URL: "u"}}
		}
		_, err := s.Update(t.Context(), c, "image", f)
		wantKind(t, fmt.Sprintf("Update of %q", f), err, errdefs.ErrInvalidArgument)
	}
	c = sample("c1")
	c.Spec = nil
	_, err := s.Update(t.Context(), c, "spec")
	wantKind(t, "Update to no spec", err, errdefs.ErrInvalidArgument)
	wantSame(t, "Get", get(t, s, "c1"), made)
}

func updateTimes(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	made := create(t, s, sample("c1"))
	got, err := s.Update(t.Context(), sample("c1"))
	if err != nil {
		t.Fatalf("Update: %v", err)
	}
	if !got.CreatedAt.Equal(made.CreatedAt) || !got.UpdatedAt.After(made.UpdatedAt) {
		t.Errorf("created %v, updated %v; were %v and %v", got.CreatedAt, got.UpdatedAt, made.CreatedAt, made.UpdatedAt)
	}
}

func results(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	made := create(t, s, sample("c1"))
	c := get(t, s, "c1")
	c.Labels["a"] = "changed"
	c.Spec.Data[0] = '!'
	c.Extensions["ext"] = typed.Value{}
	made.Labels["a"] = "changed too"
	want := sample("c1")
	got := get(t, s, "c1")
	want.CreatedAt, want.UpdatedAt = got.CreatedAt, got.UpdatedAt
	wantSame(t, "Get", got, want)
}

func deleteThenCreate(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	create(t, s, sample("c1"))
	if err := s.Delete(t.Context(), "c1"); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	missingAgain := s.Delete(t.Context(), "c1")
	wantKind(t, "second Delete", missingAgain, errdefs.ErrNotFound)
	_, err := s.Get(t.Context(), "c1")
	wantKind(t, "Get", err, errdefs.ErrNotFound)
	create(t, s, sample("c1"))
}

func createRace(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	const creators = 8
	errs := make([]error, creators)
	var wg sync.WaitGroup
	for i := range creators {
		wg.Go(func() { _, errs[i] = s.Create(t.Context(), sample("c1")) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else {
			wantKind(t, "Create", err, errdefs.ErrAlreadyExists)
		}
	}
	if won != 1 {
		t.Errorf("%d creators won, want 1", won)
	}
}

func updateRace(t *testing.T, stores container.Stores) {
	s := stores.In(one)
	create(t, s, sample("c1"))
	var wg sync.WaitGroup
	var want []string
	for i := range 8 {
		k := fmt.Sprintf("k%d", i)
		want = append(want, k)
		wg.Go(func() {
			c := container.Container{ID: "c1", Labels: map[string]string{k: "v"}}
			if _, err := s.Update(t.Context(), c, "labels."+k); err != nil {
				t.Errorf("Update of %s: %v", k, err)
			}
		})
	}
	wg.Wait()
	labels := get(t, s, "c1").Labels
	if missing := slices.DeleteFunc(want, func(k string) bool { return labels[k] == "v" }); len(missing) > 0 {
		t.Errorf("labels %v are lost", missing)
	}
}
