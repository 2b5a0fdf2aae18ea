package gc

import (
	"maps"
	"slices"
	"strings"

	"github.com/gantryd/gantry/services/lease"
)

// Labels with a meaning to the collector. They are containerd's, because its
// clients write them.
const (
	LabelRoot   = "containerd.io/gc.root"              // whatever its value
	LabelUsedAt = "containerd.io/gc.cond.value-usedat" // RFC 3339, for conditions

	labelRef  = "containerd.io/gc.ref."
	labelBack = "containerd.io/gc.bref."
	labelCond = "containerd.io/gc.cond.snapshot"
)

// A Condition is that an object is kept by those snapshots of a snapshotter
// that meet it. The coordinator evaluates it.
type Condition struct {
	Type string // snapshots, with the snapshotter
	Text string // as the label has it: "usedat<720h|<key>"
}

// Read adds what labels say. What they say twice is there once, in the order of
// the types and ids.
func (o *Object) Read(labels map[string]string) {
	if _, ok := labels[LabelRoot]; ok {
		o.Root = true
	}
	o.UsedAt = labels[LabelUsedAt]
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		v := labels[k]
		if rest, ok := strings.CutPrefix(k, labelRef); ok {
			o.Refs = appendTo(o.Refs, rest, v, lease.TypeContent, lease.TypeImages, TypeMounts)
		} else if rest, ok := strings.CutPrefix(k, labelBack); ok {
			o.Backs = appendTo(o.Backs, rest, v, lease.TypeContent, lease.TypeImages, TypeContainers)
		} else if rest, ok := strings.CutPrefix(k, labelCond); ok {
			if of := snapshotter(strings.TrimLeft(rest, "./")); of != "" && v != "" {
				o.Conds = append(o.Conds, Condition{Type: of, Text: v})
			}
		}
	}
	o.Refs = distinct(o.Refs)
	o.Backs = distinct(o.Backs)
}

// singular is how labels spell a type.
var singular = map[string]string{
	"content":   lease.TypeContent,
	"image":     lease.TypeImages,
	"container": TypeContainers,
	"mount":     TypeMounts,
}

// appendTo adds the object that the label gc.ref.<rest> or gc.bref.<rest> names,
// if it is of one of the types, or a snapshot. After the type a name follows
// behind a dot or a slash, or nothing; a snapshotter may have dots in its own.
func appendTo(to []lease.Resource, rest, id string, types ...string) []lease.Resource {
	if id == "" {
		return to
	}
	if of, ok := strings.CutPrefix(rest, "snapshot."); ok {
		if of = snapshotter(of); of != "" {
			to = append(to, lease.Resource{Type: of, ID: id})
		}
		return to
	}
	word := rest
	if i := strings.IndexAny(rest, "./"); i >= 0 {
		word = rest[:i]
	}
	if t := singular[word]; t != "" && slices.Contains(types, t) {
		to = append(to, lease.Resource{Type: t, ID: id})
	}
	return to
}

// snapshotter returns the type of the snapshots of a snapshotter and perhaps a
// name behind a slash; nothing if there is none.
func snapshotter(s string) string {
	of, _, _ := strings.Cut(s, "/")
	if of == "" {
		return ""
	}
	return lease.TypeSnapshots + "/" + of
}

func distinct(all []lease.Resource) []lease.Resource {
	slices.SortFunc(all, lease.Resource.Compare)
	return slices.Compact(all)
}
