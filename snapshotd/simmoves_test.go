package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/gc/gctest"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/unpack"
)

// An outcome is what a call does to the objects if it succeeds.
type outcome struct {
	what  string
	made  map[int]*gctest.Thing // those that are there then, if they were not
	texts map[int]string        // in those that are made
	lease lease.Ref             // that they are in then
	gone  int                   // what is not there any more, or 0
	views map[int]bool
}

// tryPrepare makes a snapshot, on another or none.
func (w *simulated) tryPrepare(ctx context.Context) (o outcome, err error) {
	k := simActive[w.Rand.IntN(len(simActive))]
	parent, name := w.parentAbove(k), ""
	if parent != 0 {
		name = w.Name(parent).ID
	}
	scope, view := w.scope(), w.Rand.IntN(4) == 0
	o = w.outcome(fmt.Sprintf("prepare %d on %d in lease %q, view %t", k, parent, scope.Lease, view), scope.Lease)
	thing, labels := w.Pick(k)
	w.Model.On(thing, parent)
	o.made[k], o.views[k] = thing, view
	sn, make := w.in(scope), snapshot.Store.Prepare
	if view {
		make = snapshot.Store.View
	}
	m, err := make(sn, ctx, w.Name(k).ID, name, snapshot.Options{Labels: labels})
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return o, nil
	}
	if err == nil && !view {
		write(w.T, m, "as it was prepared")
	}
	return o, err
}

func (w *simulated) outcome(what, leaseID string) outcome {
	return outcome{
		what: what, made: map[int]*gctest.Thing{}, texts: map[int]string{}, views: map[int]bool{},
		lease: w.Model.Live[leaseID],
	}
}

func (w *simulated) scope() namespace.Scope {
	if w.alone {
		return one
	}
	return w.Scope()
}

// parentAbove is a committed one that k can be on, or 0.
func (w *simulated) parentAbove(k int) int {
	for _, i := range w.Rand.Perm(len(simCommitted)) {
		if p := simCommitted[i]; p > k && w.Model.Objects[p] != nil && w.Rand.IntN(4) > 0 {
			return p
		}
	}
	return 0
}

// tryCommit commits what is active.
func (w *simulated) tryCommit(ctx context.Context) (o outcome, err error) {
	k, to := simActive[w.Rand.IntN(len(simActive))], simCommitted[w.Rand.IntN(len(simCommitted))]
	was := w.Model.Objects[k]
	if was == nil || w.views[k] || was.Parent != 0 && was.Parent <= to {
		return outcome{}, nil
	}
	scope := w.scope()
	o = w.outcome(fmt.Sprintf("commit %d as %d in lease %q", k, to, scope.Lease), scope.Lease)
	sn := w.in(scope)
	if w.process == nil { // else it may be committed there, and nobody heard of that
		m, err := sn.Mounts(w.Context(), w.Name(k).ID)
		w.Must("Mounts", err)
		o.texts[to] = w.text()
		write(w.T, m, o.texts[to])
	}
	thing, labels := w.Pick(to)
	w.Model.On(thing, was.Parent)
	o.made[to] = thing
	err = sn.Commit(ctx, w.Name(to).ID, w.Name(k).ID, snapshot.Options{Labels: labels})
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return o, nil
	}
	o.gone = k
	return o, err
}

// tryUnpack unpacks the image.
func (w *simulated) tryUnpack(ctx context.Context) (o outcome, err error) {
	scope := w.scope()
	o = w.outcome(fmt.Sprintf("unpack in lease %q", scope.Lease), scope.Lease)
	layers, parent := slices.Clone(w.layers), 0
	for i, k := range simImage {
		thing, labels := w.Pick(k)
		w.Model.On(thing, parent)
		o.made[k], o.texts[k] = thing, layerText(k)
		layers[i].Labels, parent = labels, k
	}
	service, err := w.s.Unpacking().In(scope, w.of)
	w.Must("Unpacking", err)
	return o, unpack.Wait(service.Unpack(ctx, layers), nil)
}

func (w *simulated) prepare(ctx context.Context, held bool) {
	w.losing = true
	w.try(ctx, held, w.tryPrepare)
	w.losing = false
}

func (w *simulated) commit(ctx context.Context, held bool) {
	w.losing = true
	w.try(ctx, held, w.tryCommit)
	w.losing = false
}

// unpack loses no call: some of its layers would be there, or not.
func (w *simulated) unpack(ctx context.Context, held bool) { w.try(ctx, held, w.tryUnpack) }

// empty removes what is trash, as far as it can be reached.
func (w *simulated) empty() {
	w.Must("empty", w.s.empty(w.Context()))
	for _, e := range w.s.externals {
		w.Must("emptyExternal", w.s.emptyExternal(w.Context(), e))
	}
}

// try makes a call and notes what it did.
func (w *simulated) try(ctx context.Context, held bool, do func(context.Context) (outcome, error)) {
	o, err := do(ctx)
	if o.what == "" {
		return
	}
	w.Say("%s: %v", o.what, err)
	if w.process != nil && (errors.Is(err, errdefs.ErrUnavailable) || errors.Is(err, errdefs.ErrFailedPrecondition)) {
		return // it was lost, or is committed under another name by a call that was
	}
	if held {
		w.Refused(o.what, err)
		return
	}
	w.Must(o.what, err)
	w.happened(o)
}

// happened notes what a call did.
func (w *simulated) happened(o outcome) {
	for k, thing := range o.made {
		if w.Model.Objects[k] == nil {
			w.texts[k], w.views[k] = o.texts[k], o.views[k]
		}
		w.Model.Made(k, thing)
		w.Model.Joined(k, o.lease)
	}
	if o.gone != 0 {
		w.Model.Removed(o.gone)
		maps.DeleteFunc(w.Model.Members[o.gone], func(l lease.Ref, _ bool) bool { return l.ID == o.lease.ID })
	}
}

// powerFails cuts the power in the middle of something. What nobody was told of
// is there, or not; it joins no lease, of which nobody could say whether it did.
func (w *simulated) powerFails(held bool) {
	if held || w.process != nil {
		return
	}
	w.alone = true
	defer func() { w.alone = false }()
	w.power.cutAt = w.power.changes + 1 + w.Rand.IntN(8)
	do := []func(context.Context) (outcome, error){w.tryPrepare, w.tryCommit, w.tryUnpack, func(ctx context.Context) (outcome, error) {
		return outcome{what: "empty"}, w.s.empty(ctx)
	}}[w.Rand.IntN(4)]
	o, err := do(w.Context())
	w.Say("the power fails during %s: %v", o.what, err)
	w.Crashed(0)
	w.Crash()
	if err == nil {
		w.happened(o)
		return
	}
	for k := range maps.Clone(o.made) {
		has, err := w.Has(w.Context(), w.Name(k))
		w.Must("Has", err)
		if !has || w.Model.Objects[k] != nil {
			delete(o.made, k)
		}
	}
	if has, err := w.Has(w.Context(), w.Name(o.gone)); err == nil && has {
		o.gone = 0
	}
	w.happened(o)
}
