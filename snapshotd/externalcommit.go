package snapshotd

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// Commit implements snapshot.Store. The name that the snapshotter is told follows
// from the id and the name, so that a commit whose end a crash kept from the
// records is found done by the next.
func (n outside) Commit(ctx context.Context, name, key string, o snapshot.Options) error {
	if err := errors.Join(snapshot.CheckKey(name), o.Check(n.d.Traits().Traits)); err != nil {
		return err
	}
	l, err := n.s.lookup(ctx, n.scope)
	if err != nil {
		return err
	}
	c := commit{snapshots: n.snapshots, name: name, key: key, options: o, lease: l}
	if err := n.s.db.View(c.check); err != nil {
		return err
	}
	if !c.taken {
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
		if err := n.commitThere(ctx, &c); err != nil {
			return fmt.Errorf("snapshot %s: %w", key, err)
		}
	}
	if err := n.s.db.Update(ctx, func(tx *kv.Tx) error { return c.write(ctx, tx) }); err != nil {
		return err
	}
	if c.taken {
		return fmt.Errorf("snapshot %s: %w", name, errdefs.ErrAlreadyExists)
	}
	return n.s.finished(ctx, c.active.ID, nil)
}

// commitThere has the snapshotter commit.
func (n outside) commitThere(ctx context.Context, c *commit) error {
	s := n.known(c.key, c.active, c.chain)
	as := n.known(c.name, record{ID: c.active.ID, Kind: snapshot.Committed, Labels: label.Clean(c.options.Labels)}, c.lower)
	if err := n.notCommittedAs(ctx, as); err != nil {
		return err
	}
	// The files before the name.
	if err := n.e.Sync(ctx, s); err != nil {
		return err
	}
	if err := n.s.begin(ctx, begun{Snapshotter: n.snapshotter, Ref: as.Ref, Name: c.name}); err != nil {
		return err
	}
	c.become()
	usage, err := n.e.Commit(ctx, s, as)
	c.made.Inodes, c.made.Size = usage.Inodes, usage.Size
	return err
}

// notCommittedAs refuses a commit under one name of what an interrupted call has
// committed under another.
func (n outside) notCommittedAs(ctx context.Context, as driver.Snapshot) error {
	var before begun
	var ok bool
	if err := n.s.db.View(func(tx *kv.Tx) (err error) {
		before, ok, err = begunOf(tx, as.ID)
		return err
	}); err != nil || !ok || before.Ref.Key == as.Key {
		return err
	}
	was := as
	was.Ref = before.Ref
	there, err := n.e.Committed(ctx, was)
	if err != nil || !there {
		return err
	}
	return fmt.Errorf("it was committed as %s by a call that was interrupted: commit it by that name, or remove it: %w", before.Name, errdefs.ErrFailedPrecondition)
}
