package contentd

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
)

// An ingest that is new is pending: its writer has the record, and the database
// has none, until there is something to resume. That is when the writer is
// closed without a commit, or before the ingest has more than pendingMax bytes.
// So a small blob costs one transaction. Whoever looks for ingests looks here
// too, before the database, so that one that is just being recorded is not
// missed.
const pendingMax = 1 << 20

// enroll records the ingest if it is pending, and not aborted.
func (w *writer) enroll(ctx context.Context) error {
	if !w.isPending() {
		return nil
	}
	return w.save(ctx, nil)
}

func (w *writer) isPending() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pending != nil
}

// drop takes a pending ingest back as if it had never been begun.
func (w *writer) drop() {
	w.mu.Lock()
	pending := w.pending != nil
	w.pending = nil
	w.mu.Unlock()
	if pending {
		w.c.removeIngest(w.name)
	}
}

// record returns the record of this writer's ingest, or nil if it was aborted,
// and the lease that it joins once it is recorded.
func (w *writer) record(tx *kv.Tx) (*ingest, lease.Ref, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.aborted:
		return nil, lease.Ref{}, nil
	case w.pending != nil:
		rec := *w.pending
		return &rec, w.lease, nil
	}
	rec, err := getIngest(tx, ingestKey(w.c.scope.Name, w.options.Ref))
	if errors.Is(err, errdefs.ErrNotFound) || err == nil && rec.File != w.name {
		return nil, lease.Ref{}, nil
	}
	return &rec, lease.Ref{}, err
}

// pendings returns the writers of a namespace whose ingests are pending.
func (s *Store) pendings(ns string) []*writer {
	s.mu.Lock()
	var all []*writer
	for key, w := range s.writers {
		if key.namespace == ns {
			all = append(all, w)
		}
	}
	s.mu.Unlock()
	return slices.DeleteFunc(all, func(w *writer) bool { return !w.isPending() })
}

// pendingStatuses returns the statuses that match.
func (s *Store) pendingStatuses(ns string, f filter.Filter) []content.Status {
	var all []content.Status
	for _, w := range s.pendings(ns) {
		if st, ok := w.current(); ok && f.Match(st.Field) {
			all = append(all, st)
		}
	}
	return all
}

// mergeStatuses puts those that were pending among those that have records, in
// order of their refs.
func mergeStatuses(recorded, pending []content.Status) []content.Status {
	byRef := func(a, b content.Status) int { return strings.Compare(a.Ref, b.Ref) }
	for _, st := range pending {
		if i, found := slices.BinarySearchFunc(recorded, st, byRef); !found {
			recorded = slices.Insert(recorded, i, st)
		}
	}
	return recorded
}

// pendingMembers returns the pending ingests that will join a lease.
func (s *Store) pendingMembers(ns string, l lease.Ref) []lease.Resource {
	var all []lease.Resource
	for _, w := range s.pendings(ns) {
		w.mu.Lock()
		if w.pending != nil && !w.aborted && w.lease == l {
			all = append(all, ingestOf(w.options.Ref))
		}
		w.mu.Unlock()
	}
	return all
}

// dropPending keeps pending ingests, or only the named one, from joining a lease.
func (s *Store) dropPending(ns string, l lease.Ref, ref string) {
	for _, w := range s.pendings(ns) {
		w.mu.Lock()
		if w.pending != nil && w.lease == l && (ref == "" || ref == w.options.Ref) {
			w.lease = lease.Ref{}
		}
		w.mu.Unlock()
	}
}
