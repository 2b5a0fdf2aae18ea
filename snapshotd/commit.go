package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// Commit implements snapshot.Store.
func (n snapshots) Commit(ctx context.Context, name, key string, o snapshot.Options) error {
	if err := errors.Join(snapshot.CheckKey(name), o.Check(n.d.Traits().Traits)); err != nil {
		return err
	}
	l, err := n.s.lookup(ctx, n.scope)
	if err != nil {
		return err
	}
	c := commit{snapshots: n, name: name, key: key, options: o, lease: l}
	if err := n.s.db.View(c.check); err != nil {
		return err
	}
	if !c.taken {
		// Nobody extracts into it or removes it while it is finished.
		release, err := n.s.hold(ctx, c.active.ID)
		if err != nil {
			return err
		}
		defer release()
		if err := c.recheck(); err != nil {
			return err
		}
	}
	if !c.taken {
		if err := c.finish(ctx); err != nil {
			c.undo()
			return fmt.Errorf("snapshot %s: %w", key, err)
		}
	}
	err = n.s.db.Update(ctx, func(tx *kv.Tx) error { return c.write(ctx, tx) })
	if err == nil && c.taken {
		err = fmt.Errorf("snapshot %s: %w", name, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		c.undo()
		return err
	}
	n.s.forgetLayers(c.active.ID)
	if n.s.spent.note(n.d, driver.Ref{ID: c.active.ID}) {
		n.s.ring()
	}
	return nil
}

// A commit is one call of Commit.
type commit struct {
	snapshots
	name, key string
	options   snapshot.Options
	lease     lease.Ref

	taken  bool         // the name exists
	active record       // of key
	parent string       // that the committed one has
	lower  []driver.Ref // trees below it
	chain  []driver.Ref // trees below the active one
	made   record       // of name
	origin origin       // of its tree
}

// check finds out whether the commit is possible.
func (c *commit) check(tx *kv.Tx) (err error) {
	if c.taken, err = c.exists(tx, c.name); c.taken || err != nil {
		return err
	}
	if c.active, err = c.get(tx, c.key); err != nil {
		return err
	}
	if c.active.Kind != snapshot.Active {
		return fmt.Errorf("snapshot %s is not active: %w", c.key, errdefs.ErrFailedPrecondition)
	}
	c.parent = c.active.Parent
	if c.parent == "" {
		c.parent = c.options.Parent
	}
	if c.options.Parent != "" && c.options.Parent != c.parent {
		return fmt.Errorf("snapshot %s has parent %s already: %w", c.key, c.parent, errdefs.ErrInvalidArgument)
	}
	if c.lower, err = c.below(tx, c.parent); c.active.Parent != "" {
		c.chain = c.lower
	}
	return err
}

// recheck is check once the tree is held: whoever held it before may have
// committed or removed it, and then it is not to be changed any more.
func (c *commit) recheck() error {
	id := c.active.ID
	if err := c.s.db.View(c.check); err != nil || c.taken {
		return err
	}
	if c.active.ID != id {
		return fmt.Errorf("snapshot %s: %w", c.key, errdefs.ErrNotFound)
	}
	return nil
}

// finish makes the files what they are to be for good, and durable: only then
// may the record say that they are. The note is written before, so that it is
// durable with them; what it says is only true with what is appended after.
func (c *commit) finish(ctx context.Context) (err error) {
	if err := c.intend(ctx); err != nil {
		return err
	}
	c.become()
	c.origin.Layers = c.s.layersOf(c.active.ID)
	if err := c.s.tell(note{c.owner(c.name), c.made, c.origin, false}); err != nil {
		return err
	}
	m, err := firm(ctx, c.d, c.snapshotter, c.known(c.key, c.active, c.chain), c.known(c.name, c.made, c.lower), true)
	if err != nil {
		return err
	}
	c.made.Inodes, c.made.Size, c.origin.Sum = m.Inodes, m.Size, m.sum
	return c.s.tell(note{c.owner(c.name), c.made, c.origin, true})
}

// intend notes on which tree one without a parent is put: what hides nothing
// there is dropped from it.
func (c *commit) intend(ctx context.Context) error {
	if c.active.Parent != "" || c.parent == "" {
		return nil
	}
	on := c.lower[0].ID
	switch c.active.Onto {
	case on:
		return nil
	case 0:
	default:
		return fmt.Errorf("was begun to be put on another parent than %s: %w", c.parent, errdefs.ErrFailedPrecondition)
	}
	c.active.Onto = on
	return c.s.db.Update(ctx, func(tx *kv.Tx) error {
		r, err := c.get(tx, c.key)
		if err != nil {
			return err
		}
		if r.ID != c.active.ID {
			return fmt.Errorf("snapshot %s: %w", c.key, errdefs.ErrNotFound)
		}
		r.Onto = on
		return tx.PutJSON(c.recordKey(c.key), r)
	})
}

// become makes up the record of the name.
func (c *commit) become() {
	now := time.Now().UTC()
	c.made = record{
		ID: c.active.ID, Kind: snapshot.Committed, Parent: c.parent, Labels: label.Clean(c.options.Labels),
		Created: now, Updated: now,
	}
}

// undo has the note say what the record says, and the tree be what it was.
func (c *commit) undo() {
	if c.made.ID != 0 {
		c.s.tellLater(note{owner: c.owner(c.key), record: c.active})
		c.s.thaw(c.d, c.shelf, c.key, c.made.ID)
	}
}

// thaw makes an active snapshot writable that a commit has frozen, while nobody
// else changes its tree: one whose id is held, or at start. What was committed
// after all, or removed, stays as it is.
func (s *Store) thaw(d driver.Driver, h shelf, key string, id uint64) {
	f, ok := d.(driver.Freezer)
	if !ok {
		return
	}
	var r record
	err := s.db.View(func(tx *kv.Tx) (err error) {
		r, err = h.get(tx, key)
		return err
	})
	if err == nil && r.ID == id && r.Kind == snapshot.Active {
		err = f.Thaw(h.known(key, r, nil))
	}
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		s.log.Error("a snapshot cannot be written until the store is opened again", "snapshotter", h.snapshotter, "namespace", h.namespace, "snapshot", key, "err", err)
	}
}

// write replaces the record of the key by one of the name.
func (c *commit) write(ctx context.Context, tx *kv.Tx) error {
	finished, on := c.active.ID, c.lower
	err := c.check(tx)
	if c.taken {
		c.touch(c.name)
		return c.join(tx, c.lease, c.name)
	}
	if err != nil {
		return err
	}
	if c.active.ID != finished || !slices.Equal(c.lower, on) {
		// The key or the parent was removed and made again meanwhile.
		return fmt.Errorf("snapshot %s: %w", c.key, errdefs.ErrNotFound)
	}
	return errors.Join(
		c.drop(tx, c.key, c.active),
		c.put(tx, c.name, c.made, c.d.Traits()),
		tx.PutJSON(originKey(c.made.ID), c.origin),
		c.leave(tx, c.lease.ID, c.key),
		c.join(tx, c.lease, c.name),
		c.s.box.Add(ctx, tx, event.New(c.namespace, c.made.Created, event.SnapshotCommit{Key: c.key, Name: c.name, Snapshotter: c.snapshotter})),
	)
}
