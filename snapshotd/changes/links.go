package changes

import (
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/tree"
)

// groupSize is about how much memory a group takes, and an old one, in bytes,
// without the name that is told.
const groupSize = 160

// A survey is the first of two walks. It finds out about files with several
// names, of which the first may have to be told because of the last.
type survey struct {
	overlay bool // only the upper directory is walked
	budget  *tree.Budget
	groups  map[identity]*group
	old     map[identity]*old
}

// A group is the names of one file of the upper tree.
type group struct {
	told  bool     // it is to be told
	old   identity // what its names were, if they are unchanged
	names int

	first string // that was told, in the second walk
}

// An old group is the names of one file of the lower tree.
type old struct {
	links, met uint64
	rests      int // groups that are nothing but names of this one
}

func newSurvey(overlay bool, b *tree.Budget) *survey {
	return &survey{overlay: overlay, budget: b, groups: make(map[identity]*group), old: make(map[identity]*old)}
}

// add begins a group.
func (s *survey) add(id identity, g *group) error {
	s.groups[id] = g
	return s.budget.Take(groupSize)
}

func (*survey) dir(*walker, *entry) error { return nil }

func (s *survey) file(w *walker, e *entry) error {
	if s.overlay && e.upper != nil && is(e.upper, unix.S_IFREG) {
		if partial, err := hasAttribute(w.upper.Dir(), e.name, w.trees.Overlay+"metacopy"); err != nil {
			return err
		} else if partial {
			return ErrUnclear // the contents are in a layer below
		}
	}
	if !linked(e) {
		return nil
	}
	var o *old
	if e.lower != nil && !is(e.lower, unix.S_IFDIR) {
		id := identify(e.lower)
		if o = s.old[id]; o == nil {
			o = &old{links: uint64(e.lower.Nlink)} //nolint:unconvert // 32 bits elsewhere
			s.old[id] = o
			if err := s.budget.Take(groupSize); err != nil {
				return err
			}
		}
		o.met++
	}
	if e.upper == nil {
		return nil
	}
	g := s.groups[identify(e.upper)]
	if g == nil {
		g = &group{}
		if err := s.add(identify(e.upper), g); err != nil {
			return err
		}
	}
	g.names++
	if g.told {
		return nil
	}
	same, err := w.same(e)
	if err != nil {
		return err
	}
	if !same || g.names > 1 && g.old != identify(e.lower) {
		g.told = true
		return nil
	}
	g.old = identify(e.lower)
	return nil
}

// linked tells whether a name is one of several, in either tree.
func linked(e *entry) bool {
	return e.lower != nil && !is(e.lower, unix.S_IFDIR) && e.lower.Nlink > 1 ||
		e.upper != nil && e.upper.Nlink > 1
}

// decide is between the walks. Names that were one file and are several now are
// told, all of them.
func (s *survey) decide() error {
	for _, g := range s.groups {
		if !g.told {
			s.old[g.old].rests++
		}
	}
	for _, g := range s.groups {
		if g.told {
			continue
		}
		o := s.old[g.old]
		if s.overlay && o.met != o.links {
			// Others of its names may be the same file still, but below.
			return ErrUnclear
		}
		g.told = o.rests > 1
	}
	s.budget.Give(int64(len(s.old)) * groupSize)
	s.old = nil
	return nil
}
