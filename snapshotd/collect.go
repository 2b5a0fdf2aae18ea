package snapshotd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/snapshotd/driver"
)

const (
	// What could not be removed is tried again after retryMin, and then
	// always later, up to retryMax.
	retryMin = time.Second
	retryMax = 5 * time.Minute

	// removeTime is how long one directory may take before the next one has
	// its turn.
	removeTime = time.Minute

	// collectRest is how long what was removed stays before its files go, and
	// more with it. Whoever removes one snapshot after the other, or makes new
	// ones, does not wait for the disk behind that.
	collectRest = 500 * time.Millisecond

	// collectMax is how many rows of the trash go in one transaction.
	collectMax = 64
)

// Collect removes the directories of snapshots that are gone, until ctx ends.
// One that cannot be removed does not keep the others. It is a work of the
// daemon.
func (s *Store) Collect(ctx context.Context) error {
	s.ring() // what is left from before
	wait := retryMin
	retry := time.NewTimer(wait)
	retry.Stop()
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
			rest(ctx, collectRest)
		case <-retry.C:
		}
		err := s.empty(ctx)
		if err == nil {
			wait = retryMin
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		s.log.Warn("removed snapshots are still on disk", "err", err, "retry", wait)
		retry.Reset(wait)
		wait = min(2*wait, retryMax)
	}
}

// empty removes the trees in the trash, and what is left of committed ones. It returns what went wrong with
// those that stay.
func (s *Store) empty(ctx context.Context) error {
	all, err := s.trashed()
	if err != nil {
		return err
	}
	errs := []error{s.finish(ctx)}
	for part := range slices.Chunk(all, collectMax) {
		var gone []uint64
		for _, t := range part {
			if err := ctx.Err(); err != nil {
				return err
			}
			switch err := s.discard(ctx, t); {
			case errors.Is(err, errAway):
				continue // until it is there again
			case err != nil:
				errs = append(errs, fmt.Errorf("directory %d: %w", t.id, err))
				continue
			}
			gone = append(gone, t.id)
		}
		errs = append(errs, s.forget(ctx, gone))
	}
	return errors.Join(errs...)
}

// forget drops the rows of trees that are no more.
func (s *Store) forget(ctx context.Context, ids []uint64) error {
	if len(ids) == 0 {
		return nil
	}
	return s.db.Release(ctx, func(tx *kv.Tx) error {
		var errs []error
		for _, id := range ids {
			errs = append(errs, tx.Delete(trashKey(id)))
		}
		return errors.Join(errs...)
	})
}

// rest waits for a while, or until ctx ends.
func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// A trashed tree is a row of the trash.
type trashed struct {
	id uint64
	trash
}

func (s *Store) trashed() (all []trashed, err error) {
	err = s.db.View(func(tx *kv.Tx) error {
		for key, value := range tx.Scan(kv.Key("trash", ""), nil) {
			id, err := idOf(key)
			if err != nil {
				return err
			}
			t := trashed{id: id}
			if err := json.Unmarshal(value, &t.trash); err != nil {
				return fmt.Errorf("record %q: %v: %w", key, err, errdefs.ErrDataLoss)
			}
			all = append(all, t)
		}
		return nil
	})
	return all, err
}

var (
	errBusy = errors.New("a layer is still being extracted into it")
	errAway = errors.New("its snapshotter is not there")
)

// trashTurn waits until nobody removes trees, or decides what they are.
func (s *Store) trashTurn(ctx context.Context) (giveBack func(), err error) {
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// discard removes one tree. Its row stays until then, so that as long as there
// are files any start finds them.
func (s *Store) discard(ctx context.Context, t trashed) error {
	d, ok := s.drivers[t.Snapshotter]
	if !ok {
		return errAway
	}
	release, _ := s.tryHold(t.id)
	if release == nil {
		return errBusy
	}
	defer release()
	// A backup that is being restored may have it as a snapshot.
	giveBack, err := s.trashTurn(ctx)
	if err != nil {
		return err
	}
	defer giveBack()
	var still bool
	if err := s.db.View(func(tx *kv.Tx) (err error) {
		still, err = isRow(tx, trashKey(t.id))
		return err
	}); err != nil || !still {
		return err
	}
	slow, cancel := context.WithTimeout(ctx, removeTime)
	defer cancel()
	// Whoever looks for records that are lost must not find this one.
	s.forgetLayers(t.id)
	if err := s.untell(t.Snapshotter, t.id); err != nil {
		return err
	}
	return d.Remove(slow, driver.Ref{ID: t.id, Key: t.Key})
}
