package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/snapshot"
)

// reconcile compares the records with the directories and mends what differs:
// directories without a record are trash, and directories of active snapshots
// that a power failure took are made anew. A committed snapshot without files
// can only be reported.
func (s *Store) reconcile() error {
	found, err := s.directories()
	if err != nil {
		return err
	}
	var missing []uint64
	last := uint64(0)
	if err := s.db.View(func(tx *kv.Tx) error {
		if err := tx.GetJSON(lastKey, &last); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		for key := range tx.Scan(kv.Key("dir", ""), nil) {
			id, err := idOf(key)
			if err != nil {
				return err
			}
			if !found[id] {
				missing = append(missing, id)
			}
			delete(found, id)
			last = max(last, id)
		}
		for key := range tx.Scan(kv.Key("trash", ""), nil) {
			id, err := idOf(key)
			if err != nil {
				return err
			}
			delete(found, id)
			last = max(last, id)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	for id := range found {
		last = max(last, id)
	}
	s.last.Store(last)
	if err := s.trash(found); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	for _, id := range missing {
		if err := s.mend(id); err != nil {
			return fmt.Errorf("reconcile: directory %d: %w", id, err)
		}
	}
	return nil
}

// directories returns the ids that have a whole directory.
func (s *Store) directories() (map[uint64]bool, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	found := make(map[uint64]bool, len(entries))
	for _, e := range entries {
		id, err := strconv.ParseUint(e.Name(), 10, 64)
		if err != nil || strconv.FormatUint(id, 10) != e.Name() {
			s.log.Warn("something else is among the snapshots", "dir", s.dir, "name", e.Name())
			continue
		}
		found[id] = true
	}
	return found, nil
}

// trash gives directories without a record to the collector.
func (s *Store) trash(ids map[uint64]bool) error {
	if len(ids) == 0 {
		return nil
	}
	s.log.Info("found directories without a snapshot", "count", len(ids))
	all := make([]uint64, 0, len(ids))
	for id := range ids {
		all = append(all, id)
	}
	now := time.Now().UTC()
	for part := range slices.Chunk(all, dropMax) {
		if err := s.db.Release(context.Background(), func(tx *kv.Tx) error {
			var errs []error
			for _, id := range part {
				errs = append(errs, tx.PutJSON(trashKey(id), trash{Since: now}))
			}
			return errors.Join(errs...)
		}); err != nil {
			return err
		}
	}
	return nil
}

// mend makes the directory of a snapshot anew that has lost it.
func (s *Store) mend(id uint64) error {
	var r record
	var o owner
	var chain []uint64
	if err := s.db.View(func(tx *kv.Tx) error {
		if err := tx.GetJSON(dirKey(id), &o); err != nil {
			return err
		}
		h := shelf{o.Snapshotter, o.Namespace}
		var err error
		if r, err = h.get(tx, o.Name); err != nil {
			return err
		}
		chain, err = h.chain(tx, r.Parent)
		return err
	}); err != nil {
		return err
	}
	if r.Kind == snapshot.Committed {
		s.log.Error("the files of a snapshot are gone", "namespace", o.Namespace, "snapshot", o.Name, "dir", s.path(id))
		return nil
	}
	s.log.Warn("made the directory of a snapshot anew", "namespace", o.Namespace, "snapshot", o.Name, "dir", s.path(id))
	return s.makeDir(r, chain)
}
