package snapshotd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/backup"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// A rebuilding is the records being made again of what the notes say.
type rebuilding struct {
	*Store
	now       time.Time
	trees     map[uint64]string // snapshotter of each, whole or not
	notes     []note            // the newest snapshot first
	unclaimed map[uint64]string // trees that nobody knows, and why
	young     map[uint64]bool   // were being made when the trees were listed
	busy      map[uint64]bool   // were worked on then: what record they have is right, if they have one
	last      uint64            // id that had been handed out then; 0 if nobody was at work
	made      int
	gone      int
}

// isYoung says whether a tree may have come while the others were listed.
func (b *rebuilding) isYoung(id uint64) bool { return b.young[id] || b.last > 0 && id > b.last }

// rebuild makes the records that notes tell of and the database does not know,
// and removes those whose trees are gone: what is in a backup and was removed
// since. A snapshot that was removed since, and whose tree is still there with
// its note, is there again. What nobody can tell anything of is not trash: a
// container may run on it. It can be done twice.
func (s *Store) rebuild(ctx context.Context) (backup.Report, error) {
	var report backup.Report
	b := &rebuilding{Store: s, now: time.Now().UTC(), unclaimed: make(map[uint64]string)}
	for _, step := range []func(context.Context) error{b.look, b.dropGone, b.remakeAll, b.claim} {
		if err := step(ctx); err != nil {
			return report, fmt.Errorf("rebuild: %w", err)
		}
	}
	if err := s.keeper.Settle(); err != nil {
		return report, err
	}
	for _, c := range []backup.Change{
		{What: "snapshots got the record that their note tells of", Count: int64(b.made)},
		{What: "records were removed whose tree is not there", Count: int64(b.gone)},
		{What: "trees stay of which nobody knows whose they are", Count: int64(len(b.unclaimed))},
	} {
		if c.Count > 0 {
			report.Changes = append(report.Changes, c)
		}
	}
	s.log.Error("the records were rebuilt; nothing of it is collected before label "+gc.LabelRoot+" is removed, and gantryctl fsck snapshots says whether the trees are right",
		"made", b.made, "removed", b.gone, "unclaimed", len(b.unclaimed))
	return report, nil
}

// look finds the trees and the notes.
func (b *rebuilding) look(ctx context.Context) (err error) {
	b.mu.Lock()
	b.young, b.last = maps.Clone(b.making), b.Store.last.Load()
	b.busy = make(map[uint64]bool, len(b.held))
	for id := range b.held {
		b.busy[id] = true
	}
	b.mu.Unlock()
	if b.trees, err = b.Store.trees(ctx); err != nil {
		return err
	}
	for name := range openers {
		ids, err := b.noteIDs(name)
		if err != nil {
			return err
		}
		for _, id := range ids {
			// That of a snapshotter that is missing now cannot be asked.
			if _, there := b.drivers[name]; !there {
				b.trees[id] = name
			}
			n, ok, err := b.believe(name, id)
			if err != nil {
				return err
			}
			if ok && b.trees[id] == name && !b.isYoung(id) {
				b.notes = append(b.notes, n)
			}
		}
	}
	slices.SortFunc(b.notes, func(x, y note) int { return cmp.Compare(y.ID, x.ID) })
	return nil
}

// believe returns what a note says that can be believed: that a snapshot is
// committed is only true if its tree was durable.
func (b *rebuilding) believe(snapshotter string, id uint64) (note, bool, error) {
	all, err := readNote(b.notePath(snapshotter, id), id)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	n, ok := believed(all, snapshotter)
	return n, ok, err
}

// believed returns the first of the states of a note that can be.
func believed(all []note, snapshotter string) (note, bool) {
	for _, n := range all {
		if n.Snapshotter == snapshotter && (n.Kind != snapshot.Committed || n.Whole) {
			return n, true
		}
	}
	return note{}, false
}

// dropGone removes the records whose tree is gone, and those that a note knows
// better: the backup is older. What is committed stays so. A note that says that
// it is active has lost what was appended before a power failure.
func (b *rebuilding) dropGone(ctx context.Context) error {
	newer := make(map[uint64]note, len(b.notes))
	for _, n := range b.notes {
		newer[n.ID] = n
	}
	var gone []kept
	if err := b.db.View(func(tx *kv.Tx) error {
		all, _, err := keptTrees(tx)
		for _, k := range all {
			if b.isYoung(k.record.ID) || b.busy[k.record.ID] {
				continue
			}
			n, told := newer[k.record.ID]
			_, there := b.trees[k.record.ID]
			if _, loaded := b.drivers[k.owner.Snapshotter]; !loaded && !told {
				continue
			}
			older := told && k.record.Kind != snapshot.Committed && (n.owner != k.owner || n.Kind != k.record.Kind)
			if !there || older {
				gone = append(gone, k)
			}
		}
		return err
	}); err != nil {
		return err
	}
	for _, k := range gone {
		if _, told := newer[k.record.ID]; !told {
			b.gone++
		}
		if err := b.db.Release(ctx, func(tx *kv.Tx) error {
			return k.owner.shelf().drop(tx, k.owner.Name, k.record)
		}); err != nil {
			return err
		}
	}
	return nil
}

// remakeAll makes records, parents before children: as long as there is one
// whose parent has a record.
func (b *rebuilding) remakeAll(ctx context.Context) error {
	for left := b.notes; len(left) > 0; {
		var still []note
		for _, n := range left {
			done, err := b.remake(ctx, n)
			if err != nil {
				return err
			}
			if !done {
				still = append(still, n)
			}
		}
		if len(still) == len(left) {
			for _, n := range still {
				b.unclaimed[n.ID] = fmt.Sprintf("its parent %q is not there", n.Parent)
			}
			return nil
		}
		left = still
	}
	return nil
}

// remake makes the record of a snapshot if it is missing. It is not done if the
// parent has none.
func (b *rebuilding) remake(ctx context.Context, n note) (done bool, err error) {
	h := n.shelf()
	made := false
	err = b.db.Touch(ctx, func(tx *kv.Tx) error {
		done, made = true, false
		if _, err := tx.Get(trashKey(n.ID)); !errors.Is(err, errdefs.ErrNotFound) {
			return err // it was removed before the backup
		}
		var o owner
		if err := tx.GetJSON(dirKey(n.ID), &o); err == nil && o != n.owner {
			return nil // the record of the tree knows better
		} else if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		switch r, err := h.get(tx, n.Name); {
		case err == nil && r.ID != n.ID:
			b.unclaimed[n.ID] = fmt.Sprintf("snapshot %q has another tree", n.Name)
			return nil
		case err == nil && r.Kind == snapshot.Committed && n.Updated.After(r.Updated):
			return tx.PutJSON(h.recordKey(n.Name), n.record)
		case err == nil:
			return nil
		case !errors.Is(err, errdefs.ErrNotFound):
			return err
		}
		if n.Parent != "" {
			if err := h.checkParent(tx, n.Parent); errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
				done = false
				return nil
			} else if err != nil {
				return err
			}
		}
		r := n.record
		r.Labels = maps.Clone(r.Labels)
		if r.Labels == nil {
			r.Labels = make(map[string]string)
		}
		r.Labels[gc.LabelRoot] = b.now.Format(time.RFC3339)
		made = true
		return errors.Join(raiseLast(tx, r.ID), h.put(tx, n.Name, r, b.traits(h.snapshotter)), n.putOrigin(tx), tx.Delete(unclaimedKey(n.ID)))
	})
	if err == nil && made {
		b.made++
	}
	return done, err
}

func (n note) putOrigin(tx *kv.Tx) error {
	if n.Kind != snapshot.Committed {
		return nil
	}
	return tx.PutJSON(originKey(n.ID), n.Origin)
}

// raise has no id up to this one handed out again.
func (s *Store) raise(id uint64) {
	for {
		last := s.last.Load()
		if id <= last || s.last.CompareAndSwap(last, id) {
			return
		}
	}
}

// traits are those of a driver; of one that is missing, that whatever has a note
// has a tree.
func (s *Store) traits(snapshotter string) driver.Traits {
	if d, ok := s.drivers[snapshotter]; ok {
		return d.Traits()
	}
	return driver.Traits{Views: true}
}

// An unclaimed tree was found when records were lost, and nobody knows whose it
// is. It stays until somebody has looked.
type unclaimed struct {
	Since       time.Time `json:"since"`
	Snapshotter string    `json:"snapshotter"`
	Why         string    `json:"why"`
}

func unclaimedKey(id uint64) []byte { return kv.Key("unclaimed", hexID(id)) }

// claim keeps the trees without a record from being trash.
func (b *rebuilding) claim(ctx context.Context) error {
	left := maps.Clone(b.trees)
	if err := b.db.View(func(tx *kv.Tx) error {
		var last uint64
		if err := tx.GetJSON(lastKey, &last); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		b.raise(last)
		all, _, err := keptTrees(tx)
		for _, k := range all {
			delete(left, k.record.ID)
		}
		for _, family := range []string{"trash", "quarantine"} {
			for key := range tx.Scan(kv.Key(family, ""), nil) {
				id, err := idOf(key)
				if err != nil {
					return err
				}
				delete(left, id)
			}
		}
		return err
	}); err != nil {
		return err
	}
	for id, snapshotter := range left {
		if b.isYoung(id) {
			continue
		}
		why := cmp.Or(b.unclaimed[id], "it has no note that can be believed")
		b.unclaimed[id] = why
		if err := b.db.Release(ctx, func(tx *kv.Tx) error {
			return tx.PutJSON(unclaimedKey(id), unclaimed{b.now, snapshotter, why})
		}); err != nil {
			return err
		}
	}
	for id := range b.trees {
		b.raise(id)
	}
	maps.DeleteFunc(b.unclaimed, func(id uint64, _ string) bool { _, there := left[id]; return !there })
	// Records that are older than this process do not know of the ids that it
	// gave out since, whose trees may be mounted still.
	last := b.Store.last.Load()
	return b.db.Release(ctx, func(tx *kv.Tx) error { return raiseLast(tx, last) })
}
