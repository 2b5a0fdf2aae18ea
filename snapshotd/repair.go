package snapshotd

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// quarantineKey is the row of a tree that was a snapshot's, and was wrong. It is
// an [unclaimed] one: containers that ran on it still do.
func quarantineKey(id uint64) []byte { return kv.Key("quarantine", hexID(id)) }

// checkSum says what is wrong with a committed tree.
func (c *checking) checkSum(d driver.Driver, k kept) (*fsck.Finding, error) {
	own, err := c.ownOf(k)
	if errdefs.IsDataLoss(err) || errdefs.IsNotFound(err) {
		return nil, nil // said before, or removed meanwhile
	}
	if err != nil {
		return nil, err
	}
	f := &fsck.Finding{Severity: fsck.Loss, ID: k.owner.id(), Where: fmt.Sprintf("tree %d", k.record.ID)}
	if err := c.compareLooks(d, k, own, f); err != nil {
		return nil, err
	}
	if c.isDeep(k) && (f.What == "" || f.What == "changed") {
		if err := c.compareLayer(d, k, own, f); err != nil {
			return nil, err
		}
	}
	if f.What == "" {
		return nil, nil
	}
	if still, err := c.isStill(k); err != nil || !still {
		return nil, err
	}
	if f.Refs, err = c.refsOf(k); err != nil {
		return nil, err
	}
	if c.options.Repair {
		if err := c.replace(d, k); err != nil {
			f.Why += "; it cannot be made again: " + err.Error()
		} else {
			f.Done = "its layer was extracted again, and the tree that was wrong is in quarantine"
		}
	}
	return f, nil
}

// compareLooks says in a finding that a tree is gone, or does not look as it did.
func (c *checking) compareLooks(d driver.Driver, k kept, own driver.Snapshot, f *fsck.Finding) error {
	if !d.Has(c.ctx, own) {
		f.What, f.Why = "missing", "its tree is gone"
		return nil
	}
	if k.origin.Sum == "" {
		return nil
	}
	sum, err := sumOf(c.ctx, d, own)
	switch {
	case c.ctx.Err() != nil:
		return c.ctx.Err()
	case err != nil:
		f.What, f.Why = "unreadable", err.Error()
	case sum != k.origin.Sum:
		f.What, f.Why = "changed", "the tree does not look as it did at its commit"
	}
	return nil
}

// ownOf is the snapshot as its driver knows it.
func (s *Store) ownOf(k kept) (own driver.Snapshot, err error) {
	err = s.db.View(func(tx *kv.Tx) error {
		h := k.owner.shelf()
		parents, err := h.chain(tx, k.record.Parent)
		own = h.known(k.owner.Name, k.record, parents)
		return err
	})
	return own, err
}

// isStill says whether the tree is still the snapshot's.
func (s *Store) isStill(k kept) (still bool, err error) {
	err = s.db.View(func(tx *kv.Tx) error {
		r, err := k.owner.shelf().get(tx, k.owner.Name)
		if still = err == nil && r.ID == k.record.ID; errors.Is(err, errdefs.ErrNotFound) {
			return nil
		}
		return err
	})
	return still, err
}

var errNoLayer = errors.New("it is not known to be one layer alone")

// replace extracts the layer of a snapshot into another tree, which takes the
// place of that which is wrong if it looks as the commit saw it. The old one is
// moved nowhere: containers may run on it. A crash before the swap leaves a tree
// without a record.
func (c *checking) replace(d driver.Driver, k kept) error {
	if len(k.origin.Layers) != 1 || k.origin.Sum == "" {
		return errNoLayer
	}
	old, err := c.ownOf(k)
	if err != nil {
		return err
	}
	r := k.record
	r.ID = c.last.Add(1)
	defer c.make(r.ID)()
	defer c.forgetLayers(r.ID)
	h := k.owner.shelf()
	as := h.known(k.owner.Name, r, old.Parents)
	s := as
	s.Kind = snapshot.Active
	abandon := func(err error) error {
		sn := snapshots{s: c.Store, d: d, shelf: h}
		return errors.Join(err, sn.abandon(s.Ref))
	}
	n := note{owner: k.owner, record: r, Origin: k.origin}
	if err := c.tell(n); err != nil {
		return abandon(err)
	}
	if err := c.extractAgain(d, k, s, as); err != nil {
		return abandon(err)
	}
	n.Whole = true
	if err := errors.Join(c.tell(n), c.swap(k, r, old.Parents)); err != nil {
		return abandon(err)
	}
	if c.spent.note(d, driver.Ref{ID: r.ID}) {
		c.ring() // what the new one was made of
	}
	return c.untell(k.owner.Snapshotter, k.record.ID)
}

// extractAgain makes a tree of a layer, durably, and compares it with the sum.
func (c *checking) extractAgain(d driver.Driver, k kept, s, as driver.Snapshot) error {
	if err := d.Create(c.ctx, s); err != nil {
		return err
	}
	leave, err := c.place(c.ctx)
	if err != nil {
		return err
	}
	defer leave()
	l := k.origin.Layers[0]
	a := applier{s: c.Store, scope: namespace.Scope{Name: k.owner.Namespace}}
	res, err := a.extract(c.ctx, l.descriptor(), target{d: d, Snapshot: s}, diff.ApplyOptions{})
	if err != nil {
		return err
	}
	if res.DiffID != l.DiffID {
		return fmt.Errorf("layer %s has digest %s, want %s: %w", l.Digest, res.DiffID, l.DiffID, errdefs.ErrDataLoss)
	}
	if _, err := d.Commit(c.ctx, s, as); err != nil {
		return err
	}
	sum, err := sumOf(c.ctx, d, as)
	if err == nil && sum != k.origin.Sum {
		err = fmt.Errorf("layer %s alone does not make it: %w", l.Digest, errdefs.ErrDataLoss)
	}
	return err
}

// swap gives a snapshot another tree.
func (c *checking) swap(k kept, r record, parents []driver.Ref) error {
	h := k.owner.shelf()
	return c.db.Update(c.ctx, func(tx *kv.Tx) error {
		now, err := h.get(tx, k.owner.Name)
		if err != nil {
			return err
		}
		chain, err := h.chain(tx, now.Parent)
		if err != nil {
			return err
		}
		if now.ID != k.record.ID || !slices.Equal(chain, parents) {
			return fmt.Errorf("snapshot %s was changed meanwhile: %w", k.owner.Name, errdefs.ErrFailedPrecondition)
		}
		r.Labels, r.Updated = now.Labels, now.Updated
		aside := unclaimed{time.Now().UTC(), h.snapshotter, "it was the tree of " + k.owner.id() + ", and did not look as it had to"}
		return errors.Join(
			h.drop(tx, k.owner.Name, now),
			h.put(tx, k.owner.Name, r, c.traits(h.snapshotter)),
			tx.PutJSON(originKey(r.ID), k.origin),
			raiseLast(tx, r.ID),
			tx.PutJSON(quarantineKey(now.ID), aside),
		)
	})
}
