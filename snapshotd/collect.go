package snapshotd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// empty removes the trees in the trash. It returns what went wrong with
// those that stay.
func (s *Store) empty(ctx context.Context) error {
	all, err := s.trashed()
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.discard(ctx, t); err != nil {
			errs = append(errs, fmt.Errorf("directory %d: %w", t.id, err))
		}
	}
	return errors.Join(errs...)
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

var errBusy = errors.New("a layer is still being extracted into it")

// discard removes one tree: the files first, so that as long as there are any
// the row says so. That of a snapshotter that is missing now waits for it.
func (s *Store) discard(ctx context.Context, t trashed) error {
	d, ok := s.drivers[t.Snapshotter]
	if !ok {
		return nil
	}
	release, _ := s.tryHold(t.id)
	if release == nil {
		return errBusy
	}
	defer release()
	slow, cancel := context.WithTimeout(ctx, removeTime)
	defer cancel()
	if err := d.Remove(slow, driver.Ref{ID: t.id, Key: t.Key}); err != nil {
		return err
	}
	return s.db.Release(ctx, func(tx *kv.Tx) error { return tx.Delete(trashKey(t.id)) })
}
