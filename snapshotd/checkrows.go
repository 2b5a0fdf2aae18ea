package snapshotd

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/snapshot"
)

// id is a snapshot in the words of findings.
func (o owner) id() string { return o.Snapshotter + "/" + o.Namespace + "/" + o.Name }

// A judge says what is wrong with a row, or nil, and how it is mended, if it can
// be.
type judge func(tx *kv.Tx, key, value []byte) (*fsck.Finding, func() error)

// checkRows compares the rows of every family with those of the others. What is
// wrong is found in a view, and found again in the transaction that mends it.
func (c *checking) checkRows() error {
	for _, family := range []struct {
		name  string
		judge judge
	}{
		{"snapshot", c.judgeSnapshot},
		{"child", c.judgeChild},
		{"dir", c.judgeDir},
		{"member", c.judgeMember},
		{"leased", c.judgeMember},
	} {
		var suspects [][]byte
		if err := c.db.View(func(tx *kv.Tx) error {
			for key, value := range tx.Scan(kv.Key(family.name, ""), nil) {
				c.progress.Records++
				if f, _ := family.judge(tx, key, value); f != nil {
					suspects = append(suspects, key)
				}
			}
			return c.ctx.Err()
		}); err != nil {
			return err
		}
		for _, key := range suspects {
			if err := c.mendRow(key, family.judge); err != nil {
				return err
			}
		}
	}
	return c.db.View(func(tx *kv.Tx) error {
		for key, value := range tx.Scan(kv.Key("dir", ""), nil) {
			k := kept{}
			if json.Unmarshal(value, &k.owner) != nil || !c.wants(k.owner.id()) {
				continue
			}
			var err, bad error
			if k.record, err = k.owner.shelf().get(tx, k.owner.Name); err == nil {
				if id, _ := idOf(key); id != k.record.ID {
					continue
				}
				if k.origin, bad = originOf(tx, k.record.ID); bad == nil {
					c.kept = append(c.kept, k)
				}
			}
		}
		return nil
	})
}

// mendRow judges a row once more, and makes it right if that is wanted.
func (c *checking) mendRow(key []byte, judge judge) error {
	var f *fsck.Finding
	look := func(tx *kv.Tx, mending bool) error {
		f = nil
		value, err := tx.Get(key)
		if errors.Is(err, errdefs.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		var mend func() error
		if f, mend = judge(tx, key, value); f == nil || !mending || mend == nil {
			return nil
		}
		return mend()
	}
	var err error
	if c.options.Repair {
		err = c.db.Touch(c.ctx, func(tx *kv.Tx) error { return look(tx, true) })
	} else {
		err = c.db.View(func(tx *kv.Tx) error { return look(tx, false) })
	}
	if err != nil || f == nil {
		return err
	}
	f.Where = fmt.Sprintf("record %q", kv.Parts(key))
	if !c.options.Repair {
		f.Done = ""
	}
	return c.say(f)
}

// judgeSnapshot wants a record that can be read, its parent, and the rows that go
// with it.
func (c *checking) judgeSnapshot(tx *kv.Tx, key, value []byte) (*fsck.Finding, func() error) {
	n, ok := nodeAt(key)
	h, _ := shelfOf(n)
	o := h.owner(n.ID)
	if !ok || !c.wants(o.id()) {
		return nil, nil
	}
	r, err := readRecord(key, value)
	if err != nil {
		return &fsck.Finding{Severity: fsck.Loss, What: "record", ID: o.id(), Why: "it cannot be read: " + err.Error()}, nil
	}
	if r.Parent != "" {
		parent, err := h.get(tx, r.Parent)
		switch {
		case err != nil:
			return &fsck.Finding{Severity: fsck.Loss, What: "parent", ID: o.id(), Why: fmt.Sprintf("its parent %q is not there", r.Parent)}, nil
		case parent.Kind != snapshot.Committed:
			return &fsck.Finding{Severity: fsck.Loss, What: "parent", ID: o.id(), Why: fmt.Sprintf("its parent %q is not committed", r.Parent)}, nil
		}
		if there, err := isRow(tx, h.childKey(r.Parent, n.ID)); err == nil && !there {
			return &fsck.Finding{Severity: fsck.Loss, What: "record", ID: o.id(), Why: "its parent does not know it", Done: "written anew"},
				func() error { return tx.Put(h.childKey(r.Parent, n.ID), nil) }
		}
	}
	d, loaded := c.drivers[h.snapshotter]
	if there, err := isRow(tx, dirKey(r.ID)); err == nil && !there && loaded && r.hasTree(d.Traits()) {
		return &fsck.Finding{Severity: fsck.Loss, What: "record", ID: o.id(), Why: "the row of its tree is missing", Done: "written anew"},
			func() error { return tx.PutJSON(dirKey(r.ID), o) }
	}
	return nil, nil
}

// judgeChild wants a child that says the same.
func (c *checking) judgeChild(tx *kv.Tx, key, _ []byte) (*fsck.Finding, func() error) {
	p := kv.Parts(key)
	if len(p) != 5 || c.only != nil {
		return nil, nil
	}
	r, err := shelf{p[1], p[2]}.get(tx, p[4])
	if err == nil && r.Parent == p[3] || err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return nil, nil
	}
	return &fsck.Finding{
		Severity: fsck.Waste, What: "child", ID: owner{p[1], p[2], p[3]}.id(), Why: fmt.Sprintf("%q is not its child, and keeps it from being removed", p[4]), Done: "removed",
	}, func() error { return tx.Delete(key) }
}

// judgeDir wants the record of the tree.
func (c *checking) judgeDir(tx *kv.Tx, key, value []byte) (*fsck.Finding, func() error) {
	var o owner
	id, err := idOf(key)
	if err != nil || c.only != nil {
		return nil, nil
	}
	remove := func() error { return tx.Delete(key) }
	if json.Unmarshal(value, &o) != nil {
		return &fsck.Finding{Severity: fsck.Waste, What: "record", Why: "whose tree it is cannot be read", Done: "removed"}, remove
	}
	r, err := o.shelf().get(tx, o.Name)
	if err == nil && r.ID == id || err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return nil, nil
	}
	why := fmt.Sprintf("tree %d is said to be its, and is not", id)
	return &fsck.Finding{Severity: fsck.Waste, What: "record", ID: o.id(), Why: why, Done: "removed"}, func() error {
		if _, loaded := c.drivers[o.Snapshotter]; !loaded {
			return remove()
		}
		// Whose it was is not known: a container may run on it.
		return errors.Join(remove(), tx.PutJSON(unclaimedKey(id), unclaimed{time.Now().UTC(), o.Snapshotter, why}))
	}
}

// judgeMember wants both rows of a membership. Half of one is completed: that
// keeps a snapshot for too long, and not too short. A member that does not exist
// may come later.
func (c *checking) judgeMember(tx *kv.Tx, key, _ []byte) (*fsck.Finding, func() error) {
	m, err := memberAt(key)
	if c.only != nil {
		return nil, nil
	}
	if err != nil {
		return &fsck.Finding{Severity: fsck.Waste, What: "record", Why: err.Error(), Done: "removed"}, func() error { return tx.Delete(key) }
	}
	for _, k := range m.keys() {
		if there, err := isRow(tx, k); err == nil && !there {
			return &fsck.Finding{
				Severity: fsck.Loss, What: "record", ID: m.of.ID, Why: fmt.Sprintf("it is half of a membership in lease %q", m.lease.ID), Done: "completed",
			}, func() error { return m.put(tx) }
		}
	}
	return nil, nil
}
