// Package namespacetest has the promises of package namespace as tests, and
// namespaces and holders in memory that keep them.
package namespacetest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/gantryd/gantry/services/namespace"
)

// Run tests the store that open returns, which asks the holder. It calls open
// once per promise and expects no namespace each time.
func Run(t *testing.T, open func(t *testing.T, holder namespace.Holder) namespace.Store) {
	for _, p := range promises {
		t.Run(p.name, func(t *testing.T) {
			h := &Holder{}
			p.check(t, open(t, h), h)
		})
	}
}

var promises = []struct {
	name  string
	check func(*testing.T, namespace.Store, *Holder)
}{
	{"create then get returns the same labels", createThenGet},
	{"get of a missing namespace has no labels and no error", getMissing},
	{"a name that was created is taken", nameTaken},
	{"one that is merely in use can be created", createInUse},
	{"a bad name and a bad label are refused", createRefused},
	{"a label set to nothing is left out", emptyLabel},
	{"list has the created and those in use, in order", list},
	{"list leaves out what a silent holder has", listSilent},
	{"update without fields replaces all labels", updateAll},
	{"update with fields touches those only", updateFields},
	{"update of another field is refused and changes nothing", updateRefused},
	{"update creates a missing namespace", updateMissing},
	{"delete forgets the labels", deleteForgets},
	{"delete of a missing namespace is not found", deleteMissing},
	{"delete of one that is not empty says what is in it", deleteHeld},
	{"delete does not guess what a silent holder has", deleteSilent},
	{"many callers at once lose no label", concurrent},
}

func createThenGet(t *testing.T, s namespace.Store, _ *Holder) {
	want := namespace.Info{Name: "a", Labels: map[string]string{"x": "1", namespace.LabelSnapshotter: "native", "n\x00l": "\x00"}}
	got, err := s.Create(t.Context(), want)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	wantInfo(t, got, want)
	wantGet(t, s, "a", want.Labels)
}

func getMissing(t *testing.T, s namespace.Store, _ *Holder) {
	for _, name := range []string{"missing", "not an identifier", ""} {
		wantGet(t, s, name, nil)
	}
	wantList(t, s)
}

func nameTaken(t *testing.T, s namespace.Store, _ *Holder) {
	create(t, s, "a", map[string]string{"x": "1"})
	_, err := s.Create(t.Context(), namespace.Info{Name: "a"})
	wantKind(t, "Create", err, errdefs.ErrAlreadyExists)
	wantGet(t, s, "a", map[string]string{"x": "1"})
}

func createInUse(t *testing.T, s namespace.Store, h *Holder) {
	h.Hold(namespace.Holding{Namespace: "a", Kind: namespace.KindBlobs})
	create(t, s, "a", map[string]string{"x": "1"})
	wantList(t, s, "a")
	wantGet(t, s, "a", map[string]string{"x": "1"})
}

func createRefused(t *testing.T, s namespace.Store, _ *Holder) {
	for _, name := range []string{"", "a b", "a/b", "..", "a\x00", "-a", "ä", strings.Repeat("x", 77)} {
		_, err := s.Create(t.Context(), namespace.Info{Name: name})
		wantKind(t, fmt.Sprintf("Create(%q)", name), err, errdefs.ErrInvalidArgument)
		_, err = s.Update(t.Context(), namespace.Info{Name: name, Labels: map[string]string{"x": "1"}})
		wantKind(t, fmt.Sprintf("Update(%q)", name), err, errdefs.ErrInvalidArgument)
	}
	for _, labels := range []map[string]string{{"": "v"}, {"k": strings.Repeat("v", 4096)}} {
		_, err := s.Create(t.Context(), namespace.Info{Name: "a", Labels: labels})
		wantKind(t, "Create with a bad label", err, errdefs.ErrInvalidArgument)
		_, err = s.Update(t.Context(), namespace.Info{Name: "a", Labels: labels})
		wantKind(t, "Update with a bad label", err, errdefs.ErrInvalidArgument)
	}
	wantList(t, s)
}

func emptyLabel(t *testing.T, s namespace.Store, _ *Holder) {
	create(t, s, "a", map[string]string{"x": "", "y": "1"})
	wantGet(t, s, "a", map[string]string{"y": "1"})
}

func list(t *testing.T, s namespace.Store, h *Holder) {
	wantList(t, s)
	create(t, s, "b", nil)
	create(t, s, "B", map[string]string{"x": "1"})
	h.Hold(
		namespace.Holding{Namespace: "a", Kind: namespace.KindContainers},
		namespace.Holding{Namespace: "b", Kind: namespace.KindBlobs},
		namespace.Holding{Namespace: "c.d", Kind: namespace.KindSnapshots, Of: "overlayfs"},
		namespace.Holding{Namespace: "c.d", Kind: namespace.KindSnapshots, Of: "native"},
	)
	wantList(t, s, "B", "a", "b", "c.d")
	infos, err := s.List(t.Context())
	if err != nil || len(infos) == 0 || infos[0].Labels["x"] != "1" {
		t.Errorf("List = %+v, %v; want the labels too", infos, err)
	}
}

func listSilent(t *testing.T, s namespace.Store, h *Holder) {
	create(t, s, "a", nil)
	h.Hold(namespace.Holding{Namespace: "b", Kind: namespace.KindBlobs})
	h.Fail(errdefs.ErrUnavailable)
	wantList(t, s, "a")
	h.Fail(nil)
	wantList(t, s, "a", "b")
}

func updateAll(t *testing.T, s namespace.Store, _ *Holder) {
	create(t, s, "a", map[string]string{"x": "1", "y": "2"})
	want := map[string]string{"x": "9", "z": "3"}
	got, err := s.Update(t.Context(), namespace.Info{Name: "a", Labels: map[string]string{"x": "9", "z": "3", "w": ""}})
	if err != nil {
		t.Fatalf("Update: %v", err)
	}
	wantInfo(t, got, namespace.Info{Name: "a", Labels: want})
	wantGet(t, s, "a", want)
}

func updateFields(t *testing.T, s namespace.Store, _ *Holder) {
	create(t, s, "a", map[string]string{"x": "1", "y/a.b": "2", "z": "3"})
	got, err := s.Update(t.Context(), namespace.Info{Name: "a", Labels: map[string]string{"x": "9", "q": "4", "y/a.b": ""}},
		"labels.x", "labels.y/a.b", "labels.absent")
	if err != nil {
		t.Fatalf("Update: %v", err)
	}
	want := map[string]string{"x": "9", "z": "3"}
	wantInfo(t, got, namespace.Info{Name: "a", Labels: want})
	wantGet(t, s, "a", want)
}

func updateRefused(t *testing.T, s namespace.Store, _ *Holder) {
	create(t, s, "a", map[string]string{"x": "1"})
	for _, field := range []string{"labels", "labels.", "name", "", "label.x"} {
		_, err := s.Update(t.Context(), namespace.Info{Name: "a", Labels: map[string]string{"x": "2"}}, "labels.x", field)
		wantKind(t, fmt.Sprintf("Update of %q", field), err, errdefs.ErrInvalidArgument)
	}
	wantGet(t, s, "a", map[string]string{"x": "1"})
}

func updateMissing(t *testing.T, s namespace.Store, _ *Holder) {
	if _, err := s.Update(t.Context(), namespace.Info{Name: "a", Labels: map[string]string{"x": "1"}}); err != nil {
		t.Fatalf("Update: %v", err)
	}
	if _, err := s.Update(t.Context(), namespace.Info{Name: "b", Labels: map[string]string{"x": "1"}}, "labels.x"); err != nil {
		t.Fatalf("Update: %v", err)
	}
	wantList(t, s, "a", "b")
	wantGet(t, s, "b", map[string]string{"x": "1"})
	_, err := s.Create(t.Context(), namespace.Info{Name: "a"})
	wantKind(t, "Create after Update", err, errdefs.ErrAlreadyExists)
}

func deleteForgets(t *testing.T, s namespace.Store, _ *Holder) {
	create(t, s, "a", map[string]string{"x": "1"})
	create(t, s, "a.b", nil)
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	wantList(t, s, "a.b")
	wantGet(t, s, "a", nil)
	create(t, s, "a", nil)
	wantGet(t, s, "a", nil)
}

func deleteMissing(t *testing.T, s namespace.Store, _ *Holder) {
	for _, name := range []string{"a", "not an identifier", ""} {
		wantKind(t, fmt.Sprintf("Delete(%q)", name), s.Delete(t.Context(), name), errdefs.ErrNotFound)
	}
}

func deleteHeld(t *testing.T, s namespace.Store, h *Holder) {
	create(t, s, "a", map[string]string{"x": "1"})
	held := []namespace.Holding{
		{Namespace: "a", Kind: namespace.KindSnapshots, Of: "overlayfs"},
		{Namespace: "a", Kind: namespace.KindSnapshots, Of: "native"},
		{Namespace: "a", Kind: namespace.KindContainers},
		{Namespace: "b", Kind: namespace.KindImages},
		{Namespace: "a", Kind: namespace.KindBlobs},
		{Namespace: "a", Kind: namespace.KindImages},
	}
	h.Hold(held...)
	err := s.Delete(t.Context(), "a")
	wantKind(t, "Delete", err, errdefs.ErrFailedPrecondition)
	want := `namespace "a" must be empty, but it still has images, blobs, containers, snapshots on "native" snapshotter, snapshots on "overlayfs" snapshotter`
	if err != nil && strings.TrimSuffix(err.Error(), ": failed precondition") != want {
		t.Errorf("Delete: %q\n     want %q", err, want)
	}
	wantGet(t, s, "a", map[string]string{"x": "1"})

	err = s.Delete(t.Context(), "b")
	wantKind(t, "Delete of one in use", err, errdefs.ErrFailedPrecondition)
	h.Release(held...)
	wantKind(t, "Delete of one no longer in use", s.Delete(t.Context(), "b"), errdefs.ErrNotFound)
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Errorf("Delete of an empty one: %v", err)
	}
}

func deleteSilent(t *testing.T, s namespace.Store, h *Holder) {
	create(t, s, "a", map[string]string{"x": "1"})
	h.Fail(errdefs.ErrUnavailable)
	wantKind(t, "Delete", s.Delete(t.Context(), "a"), errdefs.ErrUnavailable)
	wantKind(t, "Delete of a missing one", s.Delete(t.Context(), "b"), errdefs.ErrUnavailable)
	wantGet(t, s, "a", map[string]string{"x": "1"})
}

func concurrent(t *testing.T, s namespace.Store, _ *Holder) {
	const callers = 8
	want := map[string]string{}
	var all sync.WaitGroup
	for n := range callers {
		key := fmt.Sprintf("k%d", n)
		want[key] = "1"
		all.Go(func() {
			info := namespace.Info{Name: "a", Labels: map[string]string{key: "1"}}
			if _, err := s.Update(t.Context(), info, "labels."+key); err != nil {
				t.Errorf("Update: %v", err)
			}
		})
	}
	all.Wait()
	wantGet(t, s, "a", want)
}

func create(t *testing.T, s namespace.Store, name string, labels map[string]string) {
	t.Helper()
	if _, err := s.Create(t.Context(), namespace.Info{Name: name, Labels: labels}); err != nil {
		t.Fatalf("Create(%q): %v", name, err)
	}
}

func wantInfo(t *testing.T, got, want namespace.Info) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("namespace differs (-want +got):\n%s", d)
	}
}

func wantGet(t *testing.T, s namespace.Store, name string, labels map[string]string) {
	t.Helper()
	got, err := s.Get(t.Context(), name)
	if err != nil || got.Name != name || !maps.Equal(got.Labels, labels) {
		t.Errorf("Get(%q) = %+v, %v; want labels %v", name, got, err, labels)
	}
}

func wantList(t *testing.T, s namespace.Store, want ...string) {
	t.Helper()
	infos, err := s.List(t.Context())
	var got []string
	for _, i := range infos {
		got = append(got, i.Name)
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("List = %q, %v; want %q", got, err, want)
	}
}

func wantKind(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: %v, want %v", what, err, kind)
	}
}
