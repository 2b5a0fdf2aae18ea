package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/kv"
)

// Sweep implements [gc.Owner]. The trees are trash then, and Collect removes
// them.
func (s *Store) Sweep(ctx context.Context, epoch gc.Epoch, dead []gc.Node) (int, error) {
	for _, n := range dead {
		if err := n.Check(); err != nil {
			return 0, err
		}
		if _, ok := shelfOf(n); !ok && n.Type != gc.TypeMounts {
			return 0, fmt.Errorf("node %q is not kept here: %w", n, errdefs.ErrInvalidArgument)
		}
	}
	n, err := s.gate.Sweep(ctx, epoch, dead, s.sweepDead)
	if n > 0 {
		s.log.Info("removed what nobody refers to", "count", n, "epoch", epoch)
		s.ring()
	}
	return n, err
}

// sweepRoom is how many bytes the rows that one transaction changes are long at
// most.
const sweepRoom = 128 << 10

// sweepDead removes as many of the dead as one transaction takes. They come in
// an order in which every prefix is safe, children before their parents, so that
// a crash between two transactions is.
func (s *Store) sweepDead(ctx context.Context, dead []gc.Node) (done, removed int, err error) {
	err = s.db.Release(ctx, func(tx *kv.Tx) error {
		done, removed = 0, 0
		for room := sweepRoom; done < len(dead); done++ {
			o, err := readNode(tx, dead[done])
			if errors.Is(err, errdefs.ErrNotFound) || err == nil && o.Root {
				continue
			}
			if err != nil {
				return err
			}
			all, err := s.sweepOne(ctx, tx, o, &room)
			if errors.Is(err, errHasChild) {
				continue
			}
			if err != nil || !all {
				return err
			}
			removed++
		}
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	return done, removed, nil
}

// errHasChild says that a snapshot is needed by another, whatever the collector
// knows.
var errHasChild = errors.New("it has a child")

// rowsBeside is how much longer a row is than the names in it.
const rowsBeside = 200

// sweepOne removes a dead snapshot if there is room for that, and else takes it
// from as many of its leases as there is room for.
func (s *Store) sweepOne(ctx context.Context, tx *kv.Tx, o gc.Object, room *int) (all bool, err error) {
	h, ok := shelfOf(o.Node)
	if !ok {
		return s.sweepMounts(tx, o, room)
	}
	r, err := h.get(tx, o.ID)
	if err != nil {
		return false, err
	}
	if err := h.dropFalseChildren(tx, o.ID); err != nil {
		return false, err
	}
	if all, err := leaveAll(tx, o, room); err != nil || !all {
		return false, err
	}
	const rows = 5
	if *room -= rows * (len(h.snapshotter) + len(h.namespace) + len(o.ID) + len(r.Parent) + rowsBeside); *room < 0 {
		return false, nil
	}
	return true, s.bury(ctx, tx, h, o.ID, r)
}

// leaveAll takes a dead object from its leases, as far as there is room.
func leaveAll(tx *kv.Tx, o gc.Object, room *int) (all bool, err error) {
	for _, l := range o.Leases {
		m := membership{ns: o.Namespace, lease: l, of: o.Resource}
		keys := m.keys()
		if *room -= len(keys[0]) + len(keys[1]) + rowsBeside; *room < 0 {
			return false, nil
		}
		if err := m.remove(tx); err != nil {
			return false, err
		}
	}
	return true, nil
}

// sweepMounts removes a dead activation. Nobody is told, as in containerd.
func (s *Store) sweepMounts(tx *kv.Tx, o gc.Object, room *int) (all bool, err error) {
	if all, err := leaveAll(tx, o, room); err != nil || !all {
		return false, err
	}
	const rows = 4
	if *room -= rows * (len(o.Namespace) + len(o.ID) + rowsBeside); *room < 0 {
		return false, nil
	}
	return true, s.mounter.Drop(tx, o.Namespace, o.ID)
}

// dropFalseChildren is errHasChild if a snapshot is the parent of one, and
// deletes rows that say so of one that is not there, or has another parent.
func (h shelf) dropFalseChildren(tx *kv.Tx, name string) error {
	var errs []error
	for key := range tx.Scan(h.childKey(name, ""), nil) {
		child := kv.Parts(key)[4]
		r, err := h.get(tx, child)
		switch {
		case err == nil && r.Parent == name:
			return errHasChild
		case err != nil && !errors.Is(err, errdefs.ErrNotFound):
			return err
		}
		errs = append(errs, tx.Delete(key))
	}
	return errors.Join(errs...)
}

// bury drops a record, gives the tree to the collector, and tells of it.
func (s *Store) bury(ctx context.Context, tx *kv.Tx, h shelf, name string, r record) error {
	now := time.Now().UTC()
	var errs []error
	// Whether it has a tree only its driver knows, which may be missing now.
	switch _, err := tx.Get(dirKey(r.ID)); {
	case err == nil:
		errs = append(errs, tx.PutJSON(trashKey(r.ID), trash{now, h.snapshotter, h.ref(name, r).Key}))
	case !errors.Is(err, errdefs.ErrNotFound):
		return err
	}
	errs = append(errs,
		h.drop(tx, name, r),
		s.box.Add(ctx, tx, event.New(h.namespace, now, event.SnapshotRemove{Key: name, Snapshotter: h.snapshotter})))
	return errors.Join(errs...)
}
