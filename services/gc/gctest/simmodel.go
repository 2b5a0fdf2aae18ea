package gctest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/lease"
)

// SimObjects is how many objects a simulation may have. Those with an even
// number are the site's, the others belong to the owner in memory. Who refers has
// a smaller number than what it refers to, so that there is no circle.
const SimObjects = 16

// A Model is what the clients of a simulation were told, and so what has to be
// true.
type Model struct {
	Objects map[int]*Thing
	Members map[int]map[lease.Ref]bool
	Live    map[string]lease.Ref // the leases that there are

	swept map[int]bool // by the collector, and not made since
	last  uint64       // generation
}

// A Thing is an object as clients know it.
type Thing struct {
	Parent int // what it is built on, for good; 0 is nothing

	root  bool
	refs  map[int]bool // whether it was there to be referred to
	backs map[int]bool
}

func newModel() Model {
	return Model{
		Objects: map[int]*Thing{}, Members: map[int]map[lease.Ref]bool{},
		Live: map[string]lease.Ref{}, swept: map[int]bool{},
	}
}

// Made is told of an object that exists since; it was there or it is o.
func (m *Model) Made(k int, o *Thing) {
	if m.Objects[k] == nil {
		m.Objects[k] = o
		delete(m.swept, k)
	}
}

// Joined is told of a member of a lease, if there is one.
func (m *Model) Joined(k int, l lease.Ref) {
	if l.ID == "" {
		return
	}
	if m.Members[k] == nil {
		m.Members[k] = map[lease.Ref]bool{}
	}
	m.Members[k][l] = true
}

// Removed is told of an object that a client deleted: what refers to it must do
// without.
func (m *Model) Removed(k int) {
	delete(m.Objects, k)
	for _, o := range m.Objects {
		if _, ok := o.refs[k]; ok {
			o.refs[k] = false
		}
	}
}

// Lives says whether a lease does.
func (m *Model) Lives(l lease.Ref) bool { return m.Live[l.ID] == l }

// On has o be built on another, which is there; 0 is nothing.
func (m *Model) On(o *Thing, parent int) {
	if o.Parent = parent; parent != 0 {
		o.refs[parent] = true
	}
}

// hasChild says whether something is built on an object.
func (m *Model) hasChild(k int) bool {
	for _, o := range m.Objects {
		if o.Parent == k && k != 0 {
			return true
		}
	}
	return false
}

// collected is told of one that is gone though no client deleted it.
func (m *Model) collected(k int) {
	delete(m.Objects, k)
	delete(m.Members, k)
	m.swept[k] = true
}

// needed is what must not go: all that is reachable from roots and leases.
func (m *Model) needed() map[int]bool {
	var grey []int
	for k, o := range m.Objects {
		held := slices.ContainsFunc(slices.Collect(maps.Keys(m.Members[k])), m.Lives)
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
		if o := m.Objects[k]; o != nil {
			grey = append(grey, slices.Collect(maps.Keys(o.refs))...)
		}
		for child, o := range m.Objects {
			if o.backs[k] {
				grey = append(grey, child)
			}
		}
	}
	maps.DeleteFunc(reached, func(k int, _ bool) bool { return m.Objects[k] == nil })
	return reached
}

// doomed are those that are there and that nobody needs, in order.
func (m *Model) doomed() []int {
	needed := m.needed()
	return slices.DeleteFunc(slices.Sorted(maps.Keys(m.Objects)), func(k int) bool { return needed[k] })
}

// lacking returns an object that refers to what the collector removed, and -1 if
// there is none.
func (m *Model) lacking() (from, to int) {
	for k, o := range m.Objects {
		for to, there := range o.refs {
			if there && m.swept[to] {
				return k, to
			}
		}
	}
	return -1, -1
}

// pick makes up an object with the number k, and its labels.
func (m *Model) pick(rnd *rand.Rand, k int, name func(int) gc.Node) (*Thing, map[string]string) {
	o, labels := &Thing{refs: map[int]bool{}, backs: map[int]bool{}}, map[string]string{"a": "1"}
	if o.root = rnd.IntN(12) == 0; o.root {
		labels[gc.LabelRoot] = "x"
	}
	for i := range rnd.IntN(3) {
		if k+1 < SimObjects {
			to := k + 1 + rnd.IntN(SimObjects-k-1)
			if doomed := m.doomed(); len(doomed) > 0 && doomed[len(doomed)-1] > k && rnd.IntN(2) == 0 {
				to = doomed[len(doomed)-1]
			}
			o.refs[to] = m.Objects[to] != nil
			labels["containerd.io/gc.ref."+typeLabel(name(to), i)] = name(to).ID
		}
	}
	if by := rnd.IntN(k + 1); by < k && rnd.IntN(4) == 0 && name(by).Type != gc.TypeMounts {
		o.backs[by] = true
		labels["containerd.io/gc.bref."+typeLabel(name(by), 0)] = name(by).ID
	}
	return o, labels
}

// typeLabel is the end of the i-th label that refers to what n is one of.
func typeLabel(n gc.Node, i int) string {
	word := "content"
	if of, ok := cutSnapshotter(n.Type); ok {
		word = "snapshot." + of
	} else if n.Type == gc.TypeMounts {
		word = "mount"
	}
	return fmt.Sprintf("%s/%d", word, i)
}
