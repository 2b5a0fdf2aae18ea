package imaged

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
)

const (
	// endedBatch is how many ended leases are dealt with in one transaction.
	endedBatch = 64

	// An owner that is back is told within forgetMax.
	forgetMin = 100 * time.Millisecond
	forgetMax = 30 * time.Second
)

// An endedLease is one whose members some owners have not dropped.
type endedLease struct {
	Namespace  string   `json:"namespace"`
	ID         string   `json:"id"`
	Generation uint64   `json:"generation"`
	Owners     []string `json:"owners"` // daemons

	key []byte
}

func (e endedLease) ref() lease.Ref { return lease.Ref{ID: e.ID, Generation: e.Generation} }

// end removes a lease and has its members dropped.
func (s *Store) end(tx *kv.Tx, ns, id string, r leaseRecord) error {
	if err := tx.Delete(leaseKey(ns, id)); err != nil {
		return err
	}
	if at, expires := r.lease(id).Expires(); expires {
		if err := tx.Delete(expiryKey(at, ns, id)); err != nil {
			return err
		}
	}
	return s.drop(tx, ns, lease.Ref{ID: id, Generation: r.Generation})
}

// drop has the members of a lease that ended dropped by every owner. Each call
// is a row of its own: one lease may have to be dropped again while the owners
// are being told.
func (s *Store) drop(tx *kv.Tx, ns string, l lease.Ref) error {
	serial, err := s.nextGeneration(tx)
	if err != nil {
		return err
	}
	tx.After(func() { ring(s.ended) })
	return tx.PutJSON(kv.Key("lease.ended", fmt.Sprintf("%016x", serial)), endedLease{
		Namespace:  ns,
		ID:         l.ID,
		Generation: l.Generation,
		Owners:     slices.Sorted(maps.Keys(s.members)),
	})
}

// Forget has the owners of resources drop what belonged to leases that ended,
// until ctx ends. It is a work of the daemon.
func (s *Store) Forget(ctx context.Context) error {
	retry, silent := forgetMin, silence{}
	for ctx.Err() == nil {
		now, err := s.forgetAll(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errdefs.IsResourceExhausted(err):
			now[ownDisk] = err
		case err != nil:
			return fmt.Errorf("ended leases: %w", err)
		}
		for daemon, err := range now {
			if _, known := silent[daemon]; !known {
				s.log.Warn("members of ended leases are not dropped yet", "peer", daemon, "err", err)
			}
		}
		for daemon := range silent {
			if _, still := now[daemon]; !still {
				s.log.Info("members of ended leases are dropped again", "peer", daemon)
			}
		}
		if silent = now; len(silent) == 0 {
			retry = forgetMin
			wait(ctx, s.ended, lookAgain)
			continue
		}
		wait(ctx, nil, retry)
		retry = min(2*retry, forgetMax)
	}
	return nil
}

// A silence is the owners that did not do what they were told, and why.
type silence map[string]error

// ownDisk is in a silence for a disk so full that it cannot be noted who was
// told.
const ownDisk = "the disk"

// forgetAll deals with every ended lease once.
func (s *Store) forgetAll(ctx context.Context) (silence, error) {
	silent := silence{}
	var from []byte
	for {
		batch, err := s.endedFrom(from)
		if err != nil || len(batch) == 0 {
			return silent, err
		}
		for i := range batch {
			batch[i].Owners = s.tell(ctx, batch[i], silent)
		}
		if err := s.db.Release(ctx, func(tx *kv.Tx) error { return settle(tx, batch) }); err != nil {
			return silent, err
		}
		from = append(batch[len(batch)-1].key, 0)
	}
}

func (s *Store) endedFrom(from []byte) ([]endedLease, error) {
	var batch []endedLease
	err := s.db.View(func(tx *kv.Tx) error {
		for key, value := range tx.Scan(kv.Key("lease.ended", ""), from) {
			var e endedLease
			if err := json.Unmarshal(value, &e); err != nil {
				return fmt.Errorf("record %q: %v: %w", key, err, errdefs.ErrDataLoss)
			}
			e.key = key
			if batch = append(batch, e); len(batch) == endedBatch {
				break
			}
		}
		return nil
	})
	return batch, err
}

// settle writes what is left to do of a batch.
func settle(tx *kv.Tx, batch []endedLease) error {
	for _, e := range batch {
		var err error
		if len(e.Owners) == 0 {
			err = tx.Delete(e.key)
		} else {
			err = tx.PutJSON(e.key, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tell has the owners of e drop its members, all at once, and returns those that
// did not. It asks none that is silent, and adds to those.
func (s *Store) tell(ctx context.Context, e endedLease, silent silence) (left []string) {
	failed := make([]error, len(e.Owners))
	var all sync.WaitGroup
	for i, daemon := range e.Owners {
		m, known := s.members[daemon]
		if !known {
			s.log.Warn("members of an ended lease have no owner any more", "peer", daemon, "lease", e.ID)
			continue
		}
		if failed[i] = silent[daemon]; failed[i] != nil {
			continue
		}
		all.Go(func() {
			failed[i] = ask(ctx, daemon, callTime, func(ctx context.Context) error { return m.DropMembers(ctx, e.Namespace, e.ref()) })
		})
	}
	all.Wait()
	for i, daemon := range e.Owners {
		err := failed[i]
		if err == nil {
			continue
		}
		left = append(left, daemon)
		// An owner that refuses one lease is asked for the others.
		if !errdefs.IsUnavailable(err) {
			daemon = fmt.Sprintf("%s, for lease %q", daemon, e.ID)
		}
		silent[daemon] = err
	}
	return left
}
