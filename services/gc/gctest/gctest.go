// Package gctest holds what an owner of objects promises to the collector, as a
// test suite; an owner in memory that keeps it; and a coordinator that is small
// enough to be looked through.
package gctest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/lease"
)

// A Driver is a client of an owner's: it makes objects and refers to them.
// Everything but Remove and Has waits while writers are held.
type Driver interface {
	// Node names the i-th object of a namespace.
	Node(ns string, i int) gc.Node
	// Make makes it; one that exists is touched.
	Make(ctx context.Context, ns string, i int, labels map[string]string) (gc.Node, error)
	// Touch is told that the object exists, or is [errdefs.ErrNotFound].
	Touch(ctx context.Context, n gc.Node) error
	// Label replaces its labels.
	Label(ctx context.Context, n gc.Node, labels map[string]string) error
	// Join makes it a member of a lease.
	Join(ctx context.Context, n gc.Node, l lease.Ref) error
	// Remove deletes it: [errdefs.ErrNotFound] if it is absent.
	Remove(ctx context.Context, n gc.Node) error
	// Has says whether a client finds it.
	Has(ctx context.Context, n gc.Node) (bool, error)
}

// A Subject is an owner to test, and how to.
type Subject struct {
	gc.Owner
	Driver Driver
	// Restart returns the owner as a new process has it, and ends the old one.
	Restart func() Subject
}

// Run tests the owner that open returns. It calls open once per promise and
// expects nothing in it.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	for _, p := range promises {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			p.check(&run{T: t, s: open(t)})
		})
	}
}

var promises = []struct {
	name  string
	check func(*run)
}{
	{"mark yields every object, with what decides about it", marksAll},
	{"what was not changed is not noted", notesNothing},
	{"what is made, touched, labelled or leased is noted as it is", notesChanges},
	{"what is deleted is neither marked nor noted", forgetsDeleted},
	{"a sweep removes the dead and nothing else", sweepsDead},
	{"a sweep passes over roots and what was noted", passesOver},
	{"a sweep is only heard by a frozen owner", sweepsFrozen},
	{"a sweep past the deadline removes nothing", sweepsInTime},
	{"a sweep of what is no node removes nothing", sweepsNodes},
	{"a frozen owner holds writers, and deletes go on", holdsWriters},
	{"writers are let in at the deadline by itself", thaws},
	{"writers are let in at the end", endThaws},
	{"a cycle is frozen once, with a deadline that can be", freezesOnce},
	{"an epoch is newer than all before", epochsGrow},
	{"a newer cycle ends the older, and holds whom it held", newerEnds},
	{"the end of what is over is fine", endsTwice},
	{"an owner that is started again knows no cycle, and goes on holding", restarts},
	{"a call whose caller is gone ends", callersGo},
	{"beside writers only garbage goes", besideWriters},
}

// A run is one promise put to the test.
type run struct {
	*testing.T
	s     Subject
	epoch gc.Epoch
}

func (r *run) make(i int, labels map[string]string) gc.Node {
	r.Helper()
	n, err := r.s.Driver.Make(r.Context(), "ns", i, labels)
	r.must("Make", err)
	return n
}

func (r *run) must(what string, err error) {
	r.Helper()
	if err != nil {
		r.Fatalf("%s: %v", what, err)
	}
}

func (r *run) wantKind(what string, err, kind error) {
	r.Helper()
	if !errors.Is(err, kind) {
		r.Errorf("%s: %v, want %v", what, err, kind)
	}
}

func (r *run) begin() {
	r.Helper()
	r.epoch++
	r.must("Begin", r.s.Begin(r.Context(), r.epoch))
}

func (r *run) mark() map[gc.Node]gc.Object {
	r.Helper()
	all := map[gc.Node]gc.Object{}
	for o, err := range r.s.Mark(r.Context(), r.epoch) {
		r.must("Mark", err)
		all[o.Node] = o
	}
	return all
}

// markErr is the error that a Mark ends with.
func (r *run) markErr(epoch gc.Epoch) error {
	for _, err := range r.s.Mark(r.Context(), epoch) {
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *run) freeze(d time.Duration) (map[gc.Node]gc.Object, gc.Instant) {
	r.Helper()
	deadline := gc.Now().Add(d)
	all := map[gc.Node]gc.Object{}
	for o, err := range r.s.Freeze(r.Context(), r.epoch, deadline) {
		r.must("Freeze", err)
		all[o.Node] = o
	}
	return all, deadline
}

func (r *run) freezeErr(epoch gc.Epoch, deadline gc.Instant) error {
	for _, err := range r.s.Freeze(r.Context(), epoch, deadline) {
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *run) sweep(dead ...gc.Node) int {
	r.Helper()
	n, err := r.s.Sweep(r.Context(), r.epoch, dead)
	r.must("Sweep", err)
	return n
}

func (r *run) end() {
	r.Helper()
	r.must("End", r.s.End(r.Context(), r.epoch))
}

func (r *run) wantThere(there bool, nodes ...gc.Node) {
	r.Helper()
	for _, n := range nodes {
		has, err := r.s.Driver.Has(r.Context(), n)
		r.must("Has", err)
		if has != there {
			r.Errorf("%v is there: %t, want %t", n, has, there)
		}
	}
}

// until waits until the clock of the deadlines is past at.
func (r *run) until(at gc.Instant) {
	timer := time.NewTimer(at.Sub(gc.Now()) + time.Millisecond)
	defer timer.Stop()
	<-timer.C
}

// labels refer in every way to the object of another.
func labels(to gc.Node) map[string]string {
	return map[string]string{
		"containerd.io/gc.ref.content.l.0":              "sha256:abc",
		"containerd.io/gc.ref.snapshot.overlayfs/x":     to.ID,
		"containerd.io/gc.bref.container":               "c1",
		"containerd.io/gc.cond.snapshot.overlayfs":      "usedat<720h|k",
		"containerd.io/gc.cond.value-usedat":            "2026-01-02T03:04:05Z",
		"containerd.io/distribution.source.example.com": "a,b",
	}
}

// wantLabels wants what labels say.
func (r *run) wantLabels(o gc.Object, to gc.Node) {
	r.Helper()
	refs := []lease.Resource{{Type: lease.TypeContent, ID: "sha256:abc"}, {Type: "snapshots/overlayfs", ID: to.ID}}
	backs := []lease.Resource{{Type: gc.TypeContainers, ID: "c1"}}
	conds := []gc.Condition{{Type: "snapshots/overlayfs", Text: "usedat<720h|k"}}
	if o.Root || !slices.Equal(o.Refs, refs) || !slices.Equal(o.Backs, backs) || !slices.Equal(o.Conds, conds) || o.UsedAt != "2026-01-02T03:04:05Z" {
		r.Errorf("object %+v", o)
	}
}

func marksAll(r *run) {
	const count = 350 // more than a batch
	for i := range count {
		r.make(i, nil)
	}
	other, err := r.s.Driver.Make(r.Context(), "other", 0, nil)
	r.must("Make", err)
	first := r.s.Driver.Node("ns", 0)
	r.must("Label", r.s.Driver.Label(r.Context(), first, labels(other)))
	root := r.make(count, map[string]string{gc.LabelRoot: "any"})
	member := r.s.Driver.Node("ns", 1)
	leases := []lease.Ref{{ID: "a", Generation: 3}, {ID: "a", Generation: 1 << 60}, {ID: "b\x00", Generation: 1}}
	for _, l := range leases {
		r.must("Join", r.s.Driver.Join(r.Context(), member, l))
	}
	r.begin()
	all := r.mark()
	if len(all) != count+2 {
		r.Errorf("%d objects, want %d", len(all), count+2)
	}
	r.wantLabels(all[first], other)
	if !all[root].Root || all[other].Root {
		r.Errorf("roots: %+v, %+v", all[root], all[other])
	}
	if got := all[member].Leases; !slices.Equal(got, leases) {
		r.Errorf("leases %v, want %v", got, leases)
	}
	for n, o := range all {
		if o.Size < 0 || len(o.Leases) > 0 && n != member || len(o.Refs) > 0 && n != first {
			r.Errorf("object %+v", o)
		}
	}
}

func notesNothing(r *run) {
	n := r.make(1, nil)
	r.must("Join", r.s.Driver.Join(r.Context(), n, lease.Ref{ID: "l", Generation: 1}))
	r.begin()
	r.wantThere(true, n)
	r.mark()
	if noted, _ := r.freeze(gc.HoldMax); len(noted) > 0 {
		r.Errorf("noted %v", noted)
	}
}

func notesChanges(r *run) {
	d := r.s.Driver
	untouched, touched, labelled, leased := r.make(0, nil), r.make(1, nil), r.make(2, nil), r.make(3, nil)
	r.begin()
	r.mark()
	made := r.make(4, labels(untouched))
	r.must("Touch", d.Touch(r.Context(), touched))
	r.must("Label", d.Label(r.Context(), labelled, map[string]string{gc.LabelRoot: "x"}))
	r.must("Label", d.Label(r.Context(), labelled, labels(untouched)))
	l := lease.Ref{ID: "l", Generation: 9}
	r.must("Join", d.Join(r.Context(), leased, l))
	r.must("Join", d.Join(r.Context(), d.Node("ns", 99), l)) // which there is not
	noted, _ := r.freeze(gc.HoldMax)
	for _, n := range []gc.Node{made, touched, labelled, leased} {
		if noted[n].Node != n {
			r.Errorf("%v is not noted", n)
		}
	}
	if len(noted) != 4 {
		r.Errorf("noted %v, want 4", noted)
	}
	r.wantLabels(noted[made], untouched)
	r.wantLabels(noted[labelled], untouched)
	if got := noted[leased].Leases; !slices.Equal(got, []lease.Ref{l}) {
		r.Errorf("leases %v", got)
	}
	// The next cycle notes anew.
	r.end()
	r.begin()
	if noted, _ := r.freeze(gc.HoldMax); len(noted) > 0 {
		r.Errorf("noted again %v", noted)
	}
}

func forgetsDeleted(r *run) {
	before := r.make(1, nil)
	r.must("Remove", r.s.Driver.Remove(r.Context(), before))
	r.begin()
	after := r.make(2, nil)
	r.must("Remove", r.s.Driver.Remove(r.Context(), after))
	if all := r.mark(); len(all) > 0 {
		r.Errorf("marked %v", all)
	}
	if noted, _ := r.freeze(gc.HoldMax); len(noted) > 0 {
		r.Errorf("noted %v", noted)
	}
	if n := r.sweep(before, after); n != 0 {
		r.Errorf("swept %d of what is not there", n)
	}
}

func sweepsDead(r *run) {
	var dead, live []gc.Node
	for i := range 700 {
		if n := r.make(i, nil); i%2 == 0 {
			dead = append(dead, n)
		} else {
			live = append(live, n)
		}
	}
	other, err := r.s.Driver.Make(r.Context(), "other", 0, nil)
	r.must("Make", err)
	for i := range 3 {
		r.must("Join", r.s.Driver.Join(r.Context(), dead[0], lease.Ref{ID: fmt.Sprint(i), Generation: 1}))
	}
	r.begin()
	r.mark()
	r.freeze(gc.HoldMax)
	n := r.sweep(dead[:300]...)
	n += r.sweep(dead[300:]...)
	if n += r.sweep(dead...); n != len(dead) {
		r.Errorf("swept %d, want %d", n, len(dead))
	}
	r.wantThere(false, dead...)
	r.end()
	r.wantThere(false, dead...)
	r.wantThere(true, append(live, other)...)
	// What is made again belongs to no lease of before.
	r.make(0, nil)
	r.begin()
	all := r.mark()
	if len(all) != len(live)+2 || len(all[dead[0]].Leases) > 0 {
		r.Errorf("%d objects, %+v", len(all), all[dead[0]])
	}
}

func passesOver(r *run) {
	root, noted, dead := r.make(1, map[string]string{gc.LabelRoot: "x"}), r.make(2, nil), r.make(3, nil)
	r.begin()
	r.must("Touch", r.s.Driver.Touch(r.Context(), noted))
	r.freeze(gc.HoldMax)
	if n := r.sweep(root, noted, dead); n != 1 {
		r.Errorf("swept %d, want 1", n)
	}
	r.wantThere(true, root, noted)
	r.wantThere(false, dead)
}
