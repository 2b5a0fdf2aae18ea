// Package fscktest holds the promises of package fsck, as a test suite with a
// checker in memory that keeps them.
package fscktest

import (
	"cmp"
	"errors"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/fsck"
)

// A Subject is a checker, and how to harm what it keeps.
type Subject struct {
	fsck.Checker

	// Add makes an object of the bytes and returns its id.
	Add func(t *testing.T, b string) (id string)

	// Corrupt changes the object's bytes behind the store's back.
	Corrupt func(t *testing.T, id string)

	// Present says whether users of the store find the object.
	Present func(t *testing.T, id string) bool

	// What is found of an object that is corrupt: "corrupt", if it is empty.
	What string

	// Heals says that a repair makes an object again, and that Add makes it
	// once.
	Heals bool

	// Size is how many bytes are read of the object that is made of b: those
	// of b, if it is nil.
	Size func(b string) int64
}

// sizes is how many bytes are read of objects.
func (s Subject) sizes(bodies ...string) (sum int64) {
	for _, b := range bodies {
		if s.Size != nil {
			sum += s.Size(b)
		} else {
			sum += int64(len(b))
		}
	}
	return sum
}

// Run tests the subject that open returns. It calls open once per promise, and
// expects nothing in it each time.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	for _, p := range promises {
		t.Run(p.name, func(t *testing.T) { p.check(t, open(t)) })
	}
}

var promises = []struct {
	name  string
	check func(*testing.T, Subject)
}{
	{"what is whole has no findings, and the last item counts it", whole},
	{"what is corrupt is found by a deep check only, and stays without repair", found},
	{"repair heals what is corrupt, or makes it absent until it is written again", healed},
	{"one object is checked alone", alone},
	{"options that make no sense are refused", refused},
	{"a caller who has enough ends the check", enough},
}

// check runs a check to its end and returns the findings and the last item's
// progress.
func check(t *testing.T, s Subject, o fsck.Options) ([]fsck.Finding, fsck.Progress) {
	t.Helper()
	var all []fsck.Finding
	var last fsck.Progress
	for item, err := range s.Check(t.Context(), o) {
		if err != nil {
			t.Fatalf("Check(%+v): %v", o, err)
		}
		if item.Finding != nil {
			all = append(all, *item.Finding)
		}
		last = item.Progress
	}
	return all, last
}

func whole(t *testing.T, s Subject) {
	s.Add(t, "one")
	s.Add(t, "three")
	all, last := check(t, s, fsck.Options{Deep: true})
	if len(all) > 0 || last.Objects != 2 || last.ObjectsTotal != 2 || last.Bytes != s.sizes("one", "three") || last.BytesTotal != last.Bytes {
		t.Errorf("a deep check found %+v, and came to %+v", all, last)
	}
	if all, last := check(t, s, fsck.Options{}); len(all) > 0 || last.Objects != 0 || last.Bytes != 0 {
		t.Errorf("a check of the records found %+v, and came to %+v", all, last)
	}
}

func found(t *testing.T, s Subject) {
	id := s.Add(t, "one")
	s.Add(t, "two")
	s.Corrupt(t, id)
	if all, _ := check(t, s, fsck.Options{Repair: true}); len(all) > 0 {
		t.Errorf("a check of the records found %+v", all)
	}
	for range 2 {
		wantCorrupt(t, s, fsck.Options{Deep: true}, id, false)
	}
	if !s.Present(t, id) {
		t.Error("a check without repair made it absent")
	}
}

func healed(t *testing.T, s Subject) {
	id := s.Add(t, "one")
	s.Corrupt(t, id)
	wantCorrupt(t, s, fsck.Options{Deep: true, Repair: true}, id, true)
	if s.Heals {
		all, _ := check(t, s, fsck.Options{Deep: true})
		for _, f := range all {
			if f.Severity == fsck.Loss {
				t.Errorf("after the repair: %+v", f)
			}
		}
		if !s.Present(t, id) {
			t.Error("what was healed is not there")
		}
		return
	}
	if s.Present(t, id) {
		t.Error("what is corrupt is still there after the repair")
	}
	if again := s.Add(t, "one"); again != id || !s.Present(t, id) {
		t.Errorf("written again: %s and not %s, or it is not there", again, id)
	}
	if all, _ := check(t, s, fsck.Options{Deep: true}); len(all) > 0 {
		t.Errorf("after it was written again: %+v", all)
	}
}

func wantCorrupt(t *testing.T, s Subject, o fsck.Options, id string, done bool) {
	t.Helper()
	all, _ := check(t, s, o)
	if len(all) != 1 || all[0].ID != id || all[0].What != cmp.Or(s.What, "corrupt") || all[0].Severity != fsck.Loss || (all[0].Done != "") != done {
		t.Errorf("Check(%+v) found %+v; want %s corrupt", o, all, id)
	}
}

func alone(t *testing.T, s Subject) {
	one, two := s.Add(t, "one"), s.Add(t, "two")
	s.Corrupt(t, one)
	all, last := check(t, s, fsck.Options{Only: []string{two}})
	if len(all) > 0 || last.Objects != 1 || last.Bytes != s.sizes("two") {
		t.Errorf("the other was checked too: %+v, %+v", all, last)
	}
	wantCorrupt(t, s, fsck.Options{Only: []string{one}}, one, false)
}

func refused(t *testing.T, s Subject) {
	id := s.Add(t, "one")
	for _, o := range []fsck.Options{
		{Rate: -1},
		{Rate: 1},
		{Only: make([]string, 20_000)},
		{Only: []string{id, "../../etc/passwd"}},
	} {
		for _, err := range s.Check(t.Context(), o) {
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("rate %d, %d objects: %v", o.Rate, len(o.Only), err)
			}
		}
	}
}

func enough(t *testing.T, s Subject) {
	for range s.Check(t.Context(), fsck.Options{Deep: true}) {
		break
	}
	id := s.Add(t, "one")
	s.Corrupt(t, id)
	for range s.Check(t.Context(), fsck.Options{Deep: true}) {
		break
	}
	wantCorrupt(t, s, fsck.Options{Deep: true}, id, false)
}
