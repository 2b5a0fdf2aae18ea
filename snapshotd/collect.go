package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gantryd/gantry/services/kv"
)

const (
	// What could not be removed is tried again after retryMin, and then
	// always later, up to retryMax.
	retryMin = time.Second
	retryMax = 5 * time.Minute

	// removeTime is how long one directory may take before the next one has
	// its turn.
	removeTime = time.Minute
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

// empty removes the directories in the trash. It returns what went wrong with
// those that stay.
func (s *Store) empty(ctx context.Context) error {
	ids, err := s.trashed()
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.discard(ctx, id); err != nil {
			errs = append(errs, fmt.Errorf("directory %d: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) trashed() (ids []uint64, err error) {
	err = s.db.View(func(tx *kv.Tx) error {
		for key := range tx.Scan(kv.Key("trash", ""), nil) {
			id, err := idOf(key)
			if err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return nil
	})
	return ids, err
}

var errBusy = errors.New("a layer is still being extracted into it")

// discard removes one directory: the files first, so that as long as there are
// any the row says so.
func (s *Store) discard(ctx context.Context, id uint64) error {
	release, _ := s.tryHold(id)
	if release == nil {
		return errBusy
	}
	defer release()
	slow, cancel := context.WithTimeout(ctx, removeTime)
	defer cancel()
	if err := s.disk.RemoveTree(slow, s.path(id)); err != nil {
		return err
	}
	return s.db.Release(ctx, func(tx *kv.Tx) error { return tx.Delete(trashKey(id)) })
}
