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
		if err := c.finish(ctx); err != nil {
			return fmt.Errorf("snapshot %s: %w", key, err)
		}
	}
	if err := n.s.db.Update(ctx, func(tx *kv.Tx) error { return c.write(ctx, tx) }); err != nil {
		return err
	}
	if c.taken {
		return fmt.Errorf("snapshot %s: %w", name, errdefs.ErrAlreadyExists)
	}
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
	usage  snapshot.Usage
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

// finish makes the files what they are to be for good, and durable: only then
// may the record say that they are.
func (c *commit) finish(ctx context.Context) (err error) {
	as := record{ID: c.active.ID, Kind: snapshot.Committed, Labels: label.Clean(c.options.Labels)}
	c.usage, err = c.d.Commit(ctx, c.known(c.key, c.active, c.chain), c.known(c.name, as, c.lower))
	return err
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
	now := time.Now().UTC()
	r := record{
		ID: c.active.ID, Kind: snapshot.Committed, Parent: c.parent, Labels: label.Clean(c.options.Labels),
		Created: now, Updated: now, Inodes: c.usage.Inodes, Size: c.usage.Size,
	}
	return errors.Join(
		c.drop(tx, c.key, c.active),
		c.put(tx, c.name, r, c.d.Traits()),
		c.leave(tx, c.lease.ID, c.key),
		c.join(tx, c.lease, c.name),
		c.s.box.Add(ctx, tx, event.New(c.namespace, now, event.SnapshotCommit{Key: c.key, Name: c.name, Snapshotter: c.snapshotter})),
	)
}
