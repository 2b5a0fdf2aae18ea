package snapshotd

import (
	"context"
	"encoding/json"
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
	var all []kept
	last := uint64(0)
	if err := s.db.View(func(tx *kv.Tx) error {
		if err := tx.GetJSON(lastKey, &last); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		if all, err = keptDirs(tx); err != nil {
			return err
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
	for _, k := range all {
		delete(found, k.record.ID)
		last = max(last, k.record.ID)
	}
	s.last.Store(last)
	if err := s.trash(found); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	for _, k := range all {
		if err := s.mend(k); err != nil {
			return fmt.Errorf("reconcile: directory %d: %w", k.record.ID, err)
		}
	}
	return nil
}

// A kept directory is that of a snapshot.
type kept struct {
	owner  owner
	record record
}

func keptDirs(tx *kv.Tx) (all []kept, err error) {
	for key, value := range tx.Scan(kv.Key("dir", ""), nil) {
		var k kept
		if err := json.Unmarshal(value, &k.owner); err != nil {
			return nil, fmt.Errorf("record %q: %w: %w", key, err, errdefs.ErrDataLoss)
		}
		if k.record, err = k.owner.shelf().get(tx, k.owner.Name); err != nil {
			return nil, err
		}
		all = append(all, k)
	}
	return all, nil
}

// directories returns the ids that have a directory, whole or not.
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

// mend makes anew what a snapshot has lost of its directory.
func (s *Store) mend(k kept) error {
	r := k.record
	missing := !isDir(s.fs(r.ID)) || r.Kind == snapshot.Active && !isDir(s.work(r.ID))
	if !missing {
		return nil
	}
	if r.Kind == snapshot.Committed {
		s.log.Error("the files of a snapshot are gone", "namespace", k.owner.Namespace, "snapshot", k.owner.Name, "dir", s.path(r.ID))
		return nil
	}
	var chain []uint64
	if err := s.db.View(func(tx *kv.Tx) (err error) {
		chain, err = k.owner.shelf().chain(tx, r.Parent)
		return err
	}); err != nil {
		return err
	}
	// One snapshot that cannot be mended keeps the daemon from nothing.
	if err := s.makeDir(r, chain); err != nil {
		s.log.Error("cannot make the directory of a snapshot anew", "namespace", k.owner.Namespace, "snapshot", k.owner.Name, "dir", s.path(r.ID), "err", err)
		return nil
	}
	s.log.Warn("made the directory of a snapshot anew", "namespace", k.owner.Namespace, "snapshot", k.owner.Name, "dir", s.path(r.ID))
	return nil
}

func isDir(path string) bool {
	fi, err := os.Lstat(path)
	return err == nil && fi.IsDir()
}
