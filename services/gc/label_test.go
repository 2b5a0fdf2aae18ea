package gc

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gantryd/gantry/services/lease"
)

func TestWhatLabelsSay(t *testing.T) {
	content := func(id string) lease.Resource { return lease.Resource{Type: lease.TypeContent, ID: id} }
	image := func(id string) lease.Resource { return lease.Resource{Type: lease.TypeImages, ID: id} }
	overlay := func(id string) lease.Resource { return lease.Resource{Type: "snapshots/overlayfs", ID: id} }
	container := lease.Resource{Type: TypeContainers, ID: "c"}
	for _, c := range []struct {
		key, value string
		want       Object
	}{
		{"containerd.io/gc.root", "", Object{Root: true}},
		{"containerd.io/gc.root", "false", Object{Root: true}},
		{"containerd.io/gc.roots", "x", Object{}},
		{"containerd.io/gc.ref.content", "d", Object{Refs: []lease.Resource{content("d")}}},
		{"containerd.io/gc.ref.content.l.0", "d", Object{Refs: []lease.Resource{content("d")}}},
		{"containerd.io/gc.ref.content/l/0", "d", Object{Refs: []lease.Resource{content("d")}}},
		{"containerd.io/gc.ref.contents", "d", Object{}},
		{"containerd.io/gc.ref.content.l.0", "", Object{}},
		{"containerd.io/gc.ref.image", "i", Object{Refs: []lease.Resource{image("i")}}},
		{"containerd.io/gc.ref.image.x", "i", Object{Refs: []lease.Resource{image("i")}}},
		{"containerd.io/gc.ref.container", "c", Object{}},
		{"containerd.io/gc.ref.snapshot", "k", Object{}},
		{"containerd.io/gc.ref.snapshot.", "k", Object{}},
		{"containerd.io/gc.ref.snapshot./x", "k", Object{}},
		{"containerd.io/gc.ref.snapshot.overlayfs", "k/1", Object{Refs: []lease.Resource{overlay("k/1")}}},
		{"containerd.io/gc.ref.snapshot.overlayfs/x/y", "k", Object{Refs: []lease.Resource{overlay("k")}}},
		{"containerd.io/gc.ref.snapshot.example.com", "k", Object{Refs: []lease.Resource{{Type: "snapshots/example.com", ID: "k"}}}},
		{"containerd.io/gc.bref.content", "d", Object{Backs: []lease.Resource{content("d")}}},
		{"containerd.io/gc.bref.image.x", "i", Object{Backs: []lease.Resource{image("i")}}},
		{"containerd.io/gc.bref.container/x", "c", Object{Backs: []lease.Resource{container}}},
		{"containerd.io/gc.bref.snapshot.overlayfs", "k", Object{Backs: []lease.Resource{overlay("k")}}},
		{"containerd.io/gc.cond.snapshot.overlayfs", "usedat<1h|k", Object{Conds: []Condition{{"snapshots/overlayfs", "usedat<1h|k"}}}},
		{"containerd.io/gc.cond.snapshot.overlayfs/x", "y", Object{Conds: []Condition{{"snapshots/overlayfs", "y"}}}},
		{"containerd.io/gc.cond.snapshot", "y", Object{}},
		{"containerd.io/gc.cond.value-usedat", "2026", Object{UsedAt: "2026"}},
		{"containerd.io/gc.expire", "2026", Object{}},
		{"containerd.io/uncompressed", "d", Object{}},
	} {
		var got Object
		got.Read(map[string]string{c.key: c.value})
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s=%q: %+v, want %+v", c.key, c.value, got, c.want)
		}
	}
}

func TestWhatIsSaidTwiceIsThereOnce(t *testing.T) {
	o := Object{Refs: []lease.Resource{{Type: lease.TypeContent, ID: "b"}}}
	o.Read(map[string]string{
		"containerd.io/gc.ref.content.m.1": "b",
		"containerd.io/gc.ref.content/m/2": "b",
		"containerd.io/gc.ref.content.m.0": "a",
	})
	want := []lease.Resource{{Type: lease.TypeContent, ID: "a"}, {Type: lease.TypeContent, ID: "b"}}
	if !slices.Equal(o.Refs, want) {
		t.Errorf("refs %v, want %v", o.Refs, want)
	}
}

// FuzzRead reads labels that anybody wrote: what they name can be the type of a
// node, is named once, and is not longer than they are.
func FuzzRead(f *testing.F) {
	f.Add("containerd.io/gc.ref.content.l.0", "sha256:abc", "containerd.io/gc.root", "")
	f.Add("containerd.io/gc.ref.snapshot.overlayfs/x", "k", "containerd.io/gc.bref.container", "c")
	f.Add("containerd.io/gc.cond.snapshot.overlayfs", "usedat<720h|k", "containerd.io/gc.cond.value-usedat", "x")
	f.Add("containerd.io/gc.ref.snapshot./", "\x00", "containerd.io/gc.ref.", "\xff")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		labels := map[string]string{k1: v1, k2: v2}
		var o, again Object
		o.Read(labels)
		again.Read(labels)
		if !reflect.DeepEqual(o, again) {
			t.Errorf("%q: %+v, then %+v", labels, o, again)
		}
		if _, root := labels[LabelRoot]; o.Root != root {
			t.Errorf("%q: root %t", labels, o.Root)
		}
		named := slices.Concat(o.Refs, o.Backs)
		for _, c := range o.Conds {
			named = append(named, lease.Resource{Type: c.Type, ID: c.Text})
		}
		if len(named) > len(labels) {
			t.Errorf("%q name %v", labels, named)
		}
		for _, r := range named {
			if r.ID != v1 && r.ID != v2 {
				t.Errorf("%q name %v", labels, r)
			}
			// A digest is not looked at: one that is none names nothing.
			if err := (Node{Namespace: "ns", Resource: r}).Check(); err != nil && r.Type != lease.TypeContent {
				t.Errorf("%q name %q: %v", labels, r, err)
			}
			if len(r.Type) > len(lease.TypeSnapshots)+1+max(len(k1), len(k2)) || strings.Contains(r.Type, "//") {
				t.Errorf("%q name %q", labels, r)
			}
		}
	})
}
