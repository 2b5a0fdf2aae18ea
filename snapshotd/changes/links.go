package changes

import "golang.org/x/sys/unix"

// A survey is the first of two walks. It finds out about files with several
// names, of which the first may have to be told because of the last.
type survey struct {
	overlay bool // only the upper directory is walked
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

func newSurvey(overlay bool) *survey {
	return &survey{overlay: overlay, groups: make(map[identity]*group), old: make(map[identity]*old)}
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
		}
		o.met++
	}
	if e.upper == nil {
		return nil
	}
	g := s.groups[identify(e.upper)]
	if g == nil {
		g = &group{}
		s.groups[identify(e.upper)] = g
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
	s.old = nil
	return nil
}
