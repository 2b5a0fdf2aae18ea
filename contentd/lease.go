package contentd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

// lookupTime is how long a look at a lease may take.
const lookupTime = 10 * time.Second

// lookup returns the lease of the scope, or none. It is called with no lock.
func (c *scoped) lookup(ctx context.Context) (lease.Ref, error) {
	if c.scope.Lease == "" {
		return lease.Ref{}, nil
	}
	return c.lookupIn(ctx, c.scope)
}

func (s *Store) lookupIn(ctx context.Context, scope namespace.Scope) (lease.Ref, error) {
	if s.needs.Leases == nil {
		return lease.Ref{}, fmt.Errorf("lease does not exist: %w", errdefs.ErrNotFound)
	}
	bounded, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	l, err := s.needs.Leases.Lookup(bounded, scope)
	if errors.Is(err, errdefs.ErrUnavailable) || err != nil && bounded.Err() != nil && ctx.Err() == nil {
		// Unavailable would say that the ref is held, and to try for ever.
		err = fmt.Errorf("lease %q cannot be looked up: %v: %w", scope.Lease, err, errdefs.ErrAborted)
	}
	return l, err
}

// join makes an object a member of l, if that is one.
func (c *scoped) join(tx *kv.Tx, l lease.Ref, of lease.Resource) error {
	if l.ID == "" {
		return nil
	}
	return membership{ns: c.scope.Name, lease: l, of: of}.put(tx)
}

// member checks a membership that another daemon tells of.
func member(ns string, l lease.Ref, of lease.Resource) (membership, error) {
	m := membership{ns: ns, lease: l, of: of}
	if err := errors.Join(namespace.Scope{Name: ns}.Check(), lease.CheckID(l.ID), of.Check()); err != nil {
		return m, err
	}
	if of.Type != lease.TypeContent && of.Type != lease.TypeIngests {
		return m, fmt.Errorf("resource type %q is not kept here: %w", of.Type, errdefs.ErrNotImplemented)
	}
	return m, nil
}

// AddMember implements [lease.Members].
func (s *Store) AddMember(ctx context.Context, ns string, l lease.Ref, r lease.Resource) error {
	m, err := member(ns, l, r)
	if err != nil {
		return err
	}
	return s.db.Update(ctx, m.put)
}

// RemoveMember implements [lease.Members].
func (s *Store) RemoveMember(ctx context.Context, ns string, l lease.Ref, r lease.Resource) error {
	m, err := member(ns, l, r)
	if err != nil {
		return err
	}
	if r.Type == lease.TypeIngests {
		s.dropPending(ns, l, r.ID)
	}
	return s.db.Release(ctx, m.remove)
}

// ListMembers implements [lease.Members].
func (s *Store) ListMembers(_ context.Context, ns string, l lease.Ref) ([]lease.Resource, error) {
	all := s.pendingMembers(ns, l)
	err := s.db.View(func(tx *kv.Tx) error {
		for key := range tx.Scan(membersKey(ns, l), nil) {
			if r, ok := resourceAt(key); ok {
				all = append(all, r)
			}
		}
		return nil
	})
	slices.SortFunc(all, lease.Resource.Compare)
	return slices.Compact(all), err
}

// dropBatch is how many members are dropped in one transaction, at most. For
// each two rows go, and one is written again, with dropBeside bytes beside their
// names.
const dropBatch, dropBeside = 256, 1000

// DropMembers implements [lease.Members]. An ingest that no lease has any more
// is collected.
func (s *Store) DropMembers(ctx context.Context, ns string, l lease.Ref) error {
	s.dropPending(ns, l, "")
	for from := []byte(nil); ; {
		var batch [][]byte
		room := txRoom
		if err := s.db.View(func(tx *kv.Tx) error {
			for key := range tx.Scan(membersKey(ns, l), from) {
				if room -= 3*len(key) + dropBeside; room < 0 && len(batch) > 0 {
					break
				}
				if batch = append(batch, key); len(batch) == dropBatch {
					break
				}
			}
			return nil
		}); err != nil || len(batch) == 0 {
			return err
		}
		if err := s.db.Release(ctx, func(tx *kv.Tx) error { return s.drop(tx, ns, l, batch) }); err != nil {
			return err
		}
		// What is damaged and stays is not met again.
		from = append(batch[len(batch)-1], 0)
	}
}

func (s *Store) drop(tx *kv.Tx, ns string, l lease.Ref, keys [][]byte) error {
	for _, key := range keys {
		r, ok := resourceAt(key)
		if !ok {
			continue // fsck removes it
		}
		if err := (membership{ns: ns, lease: l, of: r}).remove(tx); err != nil {
			return err
		}
		if err := s.expire(tx, ns, r); err != nil {
			return err
		}
	}
	return nil
}

// expire ends the time of an ingest that has lost its last lease.
func (s *Store) expire(tx *kv.Tx, ns string, r lease.Resource) error {
	if r.Type != lease.TypeIngests {
		return nil
	}
	left, err := leasesOf(tx, ns, r)
	if err != nil || len(left) > 0 {
		return err
	}
	var rec ingest
	if err := tx.GetJSON(ingestKey(ns, r.ID), &rec); err != nil {
		if errors.Is(err, errdefs.ErrNotFound) {
			return nil
		}
		return err
	}
	rec.Expires = s.now()
	tx.After(s.ring)
	return tx.PutJSON(ingestKey(ns, r.ID), rec)
}

// Holdings implements [namespace.Holder]. It jumps from namespace to namespace.
func (s *Store) Holdings(context.Context) ([]namespace.Holding, error) {
	var all []namespace.Holding
	err := s.db.View(func(tx *kv.Tx) error {
		for from, more := []byte(nil), true; more; {
			more = false
			for key := range tx.Scan(kv.Key("blob", ""), from) {
				ns := kv.Parts(key)[1]
				all = append(all, namespace.Holding{Namespace: ns, Kind: namespace.KindBlobs})
				// Past everything below the namespace, whose separator
				// is 0.
				from, more = append(kv.Key("blob", ns), 1), true
				break
			}
		}
		return nil
	})
	return all, err
}
