package snapshotd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// reconcile compares the records with the directories and mends what differs:
// directories without a record are trash, and directories of active snapshots
// that a power failure took are made anew. A committed snapshot without files
// can only be reported.
func (s *Store) reconcile() error {
	ctx := context.Background()
	found, err := s.trees(ctx)
	if err != nil {
		return err
	}
	var all []kept
	last := uint64(0)
	if err := s.db.View(func(tx *kv.Tx) error {
		if err := tx.GetJSON(lastKey, &last); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		var lost []uint64
		if all, lost, err = keptTrees(tx); err != nil {
			return err
		}
		for _, id := range lost {
			s.log.Error("a tree is said to be a snapshot's that has another, or is not there; it stays until gantryctl fsck snapshots", "id", id)
			delete(found, id)
			last = max(last, id)
		}
		for _, family := range []string{"trash", "unclaimed", "quarantine"} {
			for key := range tx.Scan(kv.Key(family, ""), nil) {
				id, err := idOf(key)
				if err != nil {
					return err
				}
				delete(found, id)
				last = max(last, id)
			}
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
	s.raise(last)
	if err := s.trash(ctx, found); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	if err := s.mendNotes(all); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	for _, k := range all {
		if err := s.mend(ctx, k); err != nil {
			return fmt.Errorf("reconcile: directory %d: %w", k.record.ID, err)
		}
	}
	return nil
}

// A kept tree is that of a snapshot.
type kept struct {
	owner  owner
	record record
	origin origin
}

// keptTrees returns the trees of snapshots, and those that are said to be one's
// which says otherwise: they keep nobody from the rest, and are not trash.
func keptTrees(tx *kv.Tx) (all []kept, lost []uint64, err error) {
	for key, value := range tx.Scan(kv.Key("dir", ""), nil) {
		var k kept
		if err := json.Unmarshal(value, &k.owner); err != nil {
			return nil, nil, fmt.Errorf("record %q: %w: %w", key, err, errdefs.ErrDataLoss)
		}
		id, err := idOf(key)
		if err != nil {
			return nil, nil, err
		}
		k.record, err = k.owner.shelf().get(tx, k.owner.Name)
		if errors.Is(err, errdefs.ErrNotFound) || err == nil && k.record.ID != id {
			lost = append(lost, id)
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if k.origin, err = originOf(tx, id); err != nil {
			return nil, nil, err
		}
		all = append(all, k)
	}
	return all, lost, nil
}

// trees returns the snapshotter of each id that has a tree, whole or not.
func (s *Store) trees(ctx context.Context) (map[uint64]string, error) {
	found := make(map[uint64]string)
	for name, d := range s.drivers {
		ids, err := d.IDs(ctx)
		if err != nil {
			return nil, fmt.Errorf("snapshotter %s: %w", name, err)
		}
		for _, id := range ids {
			found[id] = name
		}
	}
	return found, nil
}

// trash gives trees without a record to the collector.
func (s *Store) trash(ctx context.Context, found map[uint64]string) error {
	if len(found) == 0 {
		return nil
	}
	s.log.Info("found directories without a snapshot", "count", len(found))
	now := time.Now().UTC()
	for part := range slices.Chunk(slices.Collect(maps.Keys(found)), dropMax) {
		if err := s.db.Release(ctx, func(tx *kv.Tx) error {
			var errs []error
			for _, id := range part {
				errs = append(errs, tx.PutJSON(trashKey(id), trash{Since: now, Snapshotter: found[id]}))
			}
			return errors.Join(errs...)
		}); err != nil {
			return err
		}
	}
	return nil
}

// mend makes anew what a snapshot has lost of its tree.
func (s *Store) mend(ctx context.Context, k kept) error {
	d, ok := s.drivers[k.owner.Snapshotter]
	if !ok {
		return nil
	}
	var own driver.Snapshot
	if err := s.db.View(func(tx *kv.Tx) error {
		h := k.owner.shelf()
		parents, err := h.chain(tx, k.record.Parent)
		own = h.known(k.owner.Name, k.record, parents)
		return err
	}); errdefs.IsDataLoss(err) {
		s.log.Error("a snapshot has lost its parent", "snapshotter", k.owner.Snapshotter, "namespace", k.owner.Namespace, "snapshot", k.owner.Name, "err", err)
		return nil
	} else if err != nil {
		return err
	}
	if own.Kind == snapshot.Committed {
		s.spent.note(d, own.Ref)
	}
	if d.Has(ctx, own) {
		if own.Kind == snapshot.Active {
			s.thaw(d, k.owner.shelf(), k.owner.Name, own.ID) // a commit may have been cut short
		}
		return nil
	}
	log := s.log.With("snapshotter", k.owner.Snapshotter, "namespace", k.owner.Namespace, "snapshot", k.owner.Name, "id", own.ID)
	if own.Kind == snapshot.Committed {
		log.Error("the files of a snapshot are gone")
		return nil
	}
	// One snapshot that cannot be mended keeps the daemon from nothing.
	if err := d.Create(ctx, own); err != nil {
		log.Error("cannot make the directory of a snapshot anew", "err", err)
		return nil
	}
	log.Warn("made the directory of a snapshot anew")
	return nil
}
