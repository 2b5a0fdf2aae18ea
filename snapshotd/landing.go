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
	"github.com/gantryd/gantry/services/unpack"
	"github.com/gantryd/gantry/snapshotd/driver"
)

const (
	// landTime is how long a layer that is settled waits for those above it, to
	// be made durable together with them: a sync costs as much for many.
	landTime = time.Second

	// landMax is how many snapshots one transaction makes at most.
	landMax = 100
)

// land makes snapshots of the layers, in order, as they are settled.
func (c *unpacking) land(ctx context.Context) error {
	for rest := c.layers; len(rest) > 0; {
		n, err := c.gather(ctx, rest)
		if err != nil {
			return err
		}
		if err := c.commit(ctx, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// gather waits for the first of the layers to be settled, and a while for those
// that follow. It returns how many are.
func (c *unpacking) gather(ctx context.Context, rest []*rising) (n int, err error) {
	var late <-chan time.Time
	for n < min(len(rest), landMax) {
		select {
		case <-rest[n].settled:
		case <-late:
			return n, nil
		case <-ctx.Done():
			return n, context.Cause(ctx)
		}
		if n++; n == 1 {
			timer := time.NewTimer(landTime)
			defer timer.Stop()
			late = timer.C
		}
	}
	return n, nil
}

// commit makes layers durable and then snapshots.
func (c *unpacking) commit(ctx context.Context, layers []*rising) error {
	own := func(l *rising) bool { return l.own != nil }
	if b, ok := c.d.(driver.Batcher); ok && slices.ContainsFunc(layers, own) {
		if err := b.Sync(); err != nil {
			return err
		}
	}
	for _, l := range layers {
		if own(l) {
			if err := c.s.tell(note{c.owner(l.name), l.made, l.origin, true}); err != nil {
				return err
			}
		}
	}
	var taken []*rising
	if err := c.s.db.Update(ctx, func(tx *kv.Tx) error {
		taken = nil
		for _, l := range layers {
			there, err := c.record(ctx, tx, l)
			if err != nil {
				return &layerError{l, err}
			}
			if there {
				taken = append(taken, l)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for _, l := range layers {
		c.landed(l, slices.Contains(taken, l))
	}
	return nil
}

// record writes the record of a layer, unless there is one.
func (c *unpacking) record(ctx context.Context, tx *kv.Tx, l *rising) (there bool, err error) {
	if there, err = c.use(tx, &rising{name: l.name}, c.lease); there || err != nil {
		return there, err
	}
	if l.own == nil {
		return false, errRemovedMeanwhile(l.name)
	}
	if l.parent != "" {
		if err := c.checkParent(tx, l.parent); errors.Is(err, errdefs.ErrNotFound) {
			return false, errRemovedMeanwhile(l.parent)
		} else if err != nil {
			return false, err
		}
	}
	// As if it had been prepared before: who follows the events knows it then.
	key, now := "unpack "+l.name, l.made.Created
	return false, errors.Join(
		raiseLast(tx, l.made.ID),
		c.put(tx, l.name, l.made, c.d.Traits()),
		tx.PutJSON(originKey(l.made.ID), l.origin),
		c.join(tx, c.lease, l.name),
		c.s.box.Add(ctx, tx, event.New(c.namespace, now, event.SnapshotPrepare{Key: key, Parent: l.parent, Snapshotter: c.snapshotter})),
		c.s.box.Add(ctx, tx, event.New(c.namespace, now, event.SnapshotCommit{Key: key, Name: l.name, Snapshotter: c.snapshotter})),
	)
}

// errRemovedMeanwhile is that of a snapshot that was there, and that no lease kept.
func errRemovedMeanwhile(name string) error {
	return fmt.Errorf("snapshot %s was removed while others were put on it: %w", name, errdefs.ErrAborted)
}

// landed ends the flight of a layer. A tree of its own that others made
// superfluous stays until the call ends: layers above may be settled on it.
func (c *unpacking) landed(l *rising, taken bool) {
	if l.own != nil && !taken {
		l.own.release()
		c.disown(l.own)
		if c.s.spent.note(c.d, driver.Ref{ID: l.own.ID}) {
			c.s.ring()
		}
	}
	if l.mine == nil {
		return // existed, or is somebody else's, who says how it went
	}
	phase := unpack.Committed
	if taken {
		phase = unpack.Existed
	}
	l.mine.phase.Store(phase)
	c.s.flights.end(c.key(l), l.mine, nil)
	l.mine = nil
}
