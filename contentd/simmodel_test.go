package contentd

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/lease"
)

// simObjects is how many objects a simulation may have. Those with an even
// number are blobs, the others belong to the owner in memory. Who refers has a
// smaller number than what it refers to, so that there is no circle.
const simObjects = 16

// A simModel is what the clients of a simulation were told, and so what has to
// be true.
type simModel struct {
	objects map[int]*simObject
	members map[int]map[lease.Ref]bool
	swept   map[int]bool // by the collector, and not made since
	live    map[string]lease.Ref
	last    uint64 // generation
}

type simObject struct {
	root  bool
	refs  map[int]bool // whether it was there to be referred to
	backs map[int]bool
}

func newSimModel() simModel {
	return simModel{
		objects: map[int]*simObject{}, members: map[int]map[lease.Ref]bool{},
		swept: map[int]bool{}, live: map[string]lease.Ref{},
	}
}

// made is told of an object that exists since.
func (m *simModel) made(k int, o *simObject) {
	if m.objects[k] == nil {
		m.objects[k] = o
		delete(m.swept, k)
	}
}

func (m *simModel) joined(k int, l lease.Ref) {
	if m.members[k] == nil {
		m.members[k] = map[lease.Ref]bool{}
	}
	m.members[k][l] = true
}

// removed is told of an object that a client deleted: what refers to it must do
// without.
func (m *simModel) removed(k int) {
	delete(m.objects, k)
	for _, o := range m.objects {
		if _, ok := o.refs[k]; ok {
			o.refs[k] = false
		}
	}
}

// collected is told of one that is gone though no client deleted it.
func (m *simModel) collected(k int) {
	delete(m.objects, k)
	delete(m.members, k)
	m.swept[k] = true
}

// needed is what must not go: all that is reachable from roots and leases.
func (m *simModel) needed() map[int]bool {
	var grey []int
	for k, o := range m.objects {
		held := slices.ContainsFunc(slices.Collect(maps.Keys(m.members[k])), m.lives)
		if o.root || held {
			grey = append(grey, k)
		}
	}
	reached := map[int]bool{}
	for len(grey) > 0 {
		k := grey[len(grey)-1]
		grey = grey[:len(grey)-1]
		if reached[k] {
			continue
		}
		reached[k] = true
		if o := m.objects[k]; o != nil {
			grey = append(grey, slices.Collect(maps.Keys(o.refs))...)
		}
		for child, o := range m.objects {
			if o.backs[k] {
				grey = append(grey, child)
			}
		}
	}
	maps.DeleteFunc(reached, func(k int, _ bool) bool { return m.objects[k] == nil })
	return reached
}

func (m *simModel) lives(l lease.Ref) bool { return m.live[l.ID] == l }

// lacking returns an object that refers to what the collector removed, and -1 if
// there is none.
func (m *simModel) lacking() (from, to int) {
	for k, o := range m.objects {
		for to, there := range o.refs {
			if there && m.swept[to] {
				return k, to
			}
		}
	}
	return -1, -1
}

// pick makes up an object with the number k, and its labels.
func (m *simModel) pick(rnd *rand.Rand, k int, name func(int) gc.Node) (*simObject, map[string]string) {
	o, labels := &simObject{refs: map[int]bool{}, backs: map[int]bool{}}, map[string]string{"a": "1"}
	if o.root = rnd.IntN(8) == 0; o.root {
		labels[gc.LabelRoot] = "x"
	}
	label := func(verb string, to, i int) {
		of := "content"
		if to%2 == 1 {
			of = "snapshot.sim"
		}
		labels[fmt.Sprintf("containerd.io/gc.%s.%s/%d", verb, of, i)] = name(to).ID
	}
	for i := range rnd.IntN(3) {
		if k+1 < simObjects {
			to := k + 1 + rnd.IntN(simObjects-k-1)
			o.refs[to] = m.objects[to] != nil
			label("ref", to, i)
		}
	}
	if k > 0 && rnd.IntN(4) == 0 {
		by := rnd.IntN(k)
		o.backs[by] = true
		label("bref", by, 0)
	}
	return o, labels
}
