package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/unpack"
	"github.com/gantryd/gantry/snapshotd/arrival"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/layer"
)

// grow extracts a layer and settles it on those below. leave, if there is one,
// gives up the place that it has.
//
// A layer is extracted alone, before those below it are there, if its driver can
// put it over them afterwards. What goes wrong because they are not there, or
// would come out differently, is done once more, in its place. An ingest whose
// bytes turn out to be others is read once more when it is a blob.
func (c *unpacking) grow(ctx context.Context, l *rising, leave func()) error {
	if leave != nil {
		defer leave() // however it ends
	}
	alone := l.index > 0 && c.detaches()
	b := c.blob(l, l.flight.Load(), false)
	for {
		err := c.attempt(ctx, l, b, alone, leave)
		leave = nil
		switch {
		case err == nil:
			close(l.settled)
			return nil
		case alone && errors.Is(err, errInPlace):
			c.s.log.Debug("a layer is extracted in its place", "digest", l.Digest, "err", err)
			alone = false
		case errors.Is(err, arrival.ErrNotYet):
			c.s.log.Debug("a layer is not read before it is a blob", "digest", l.Digest, "err", err)
			b.Whole = true
		case l.Ingest != "" && !b.Whole && (errors.Is(err, arrival.ErrOther) || errors.Is(err, errdefs.ErrInvalidArgument) || errors.Is(err, errdefs.ErrFailedPrecondition)):
			c.s.log.Info("the bytes of a layer changed while they arrived", "digest", l.Digest, "err", err)
			b.Whole = true
		default:
			return err
		}
		// The disk has room for one of them.
		if t := l.sown; t != nil {
			c.disown(t)
			c.discard([]*sapling{t})
			l.sown = nil
		}
	}
}

// errInPlace says that a layer that was extracted alone has to be extracted in
// its place.
var errInPlace = errors.New("the layer needs those below it")

// attempt extracts a layer into a new tree, and settles it.
func (c *unpacking) attempt(ctx context.Context, l *rising, b *arrival.Blob, alone bool, leave func()) error {
	f := l.flight.Load()
	f.phase.Store(unpack.Waiting)
	f.read.Store(0)
	if !alone {
		if err := c.awaitBelow(ctx, l); err != nil {
			return err
		}
	}
	if err := b.Await(ctx); err != nil {
		return err
	}
	if leave == nil {
		var err error
		if leave, err = c.s.place(ctx); err != nil {
			return err
		}
	}
	f.phase.Store(unpack.Extracting)
	t, err := c.extract(ctx, l, b, alone)
	leave()
	if err != nil {
		return err
	}
	if alone {
		if err := c.awaitBelow(ctx, l); err != nil {
			return err
		}
	}
	if err := c.settle(ctx, l, t); err != nil {
		if alone && errors.Is(err, errdefs.ErrFailedPrecondition) {
			err = fmt.Errorf("%w: %w", errInPlace, err)
		}
		return err
	}
	f.phase.Store(unpack.Settled)
	return nil
}

// awaitBelow waits for the layer below to be settled.
func (c *unpacking) awaitBelow(ctx context.Context, l *rising) error {
	if l.index == 0 {
		return nil
	}
	select {
	case <-c.layers[l.index-1].settled:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// below are the trees that a layer is on, of layers that are settled.
func (c *unpacking) below(l *rising) []driver.Ref {
	if l.index == 0 {
		return nil
	}
	return c.layers[l.index-1].trees
}

// blob is where a layer's bytes are, or come from.
func (c *unpacking) blob(l *rising, f *flight, whole bool) *arrival.Blob {
	scope := namespace.Scope{Name: c.namespace}
	b := &arrival.Blob{
		Store: c.s.needs.Content.In(scope), Digest: l.Digest, Size: l.Size, Ingest: l.Ingest, Whole: whole, Read: &f.read,
	}
	if lender, ok := c.s.needs.Content.(content.FileStores); ok && l.Ingest != "" {
		b.Files = lender.Files(scope)
	}
	return b
}

// sow makes a tree for a layer. It is on the list of those that are cleared away
// before it is on the disk.
func (c *unpacking) sow(ctx context.Context, l *rising, on []driver.Ref) (*sapling, error) {
	r := record{ID: c.s.last.Add(1), Kind: snapshot.Active, Labels: label.Clean(l.Labels)}
	t := &sapling{Snapshot: c.known("unpack "+strconv.FormatUint(r.ID, 10)+" "+l.name, r, on)}
	made := c.s.make(r.ID)
	release, _ := c.s.tryHold(r.ID) // nobody else knows the id
	t.release = func() {
		release()
		made()
	}
	c.mu.Lock()
	c.made = append(c.made, t)
	c.mu.Unlock()
	l.sown = t
	return t, c.d.Create(ctx, t.Snapshot)
}

// extract makes a tree of a layer, on those below or alone.
func (c *unpacking) extract(ctx context.Context, l *rising, b *arrival.Blob, alone bool) (*sapling, error) {
	var on []driver.Ref
	if !alone {
		on = c.below(l)
	}
	t, err := c.sow(ctx, l, on)
	if err != nil {
		return nil, err
	}
	into, done, err := c.d.Extract(ctx, t.Snapshot, alone)
	if err != nil {
		return nil, err
	}
	into.FreeMin = c.s.cfg.freeMin()
	res, err := layer.Apply(ctx, l.Descriptor, func(ctx context.Context) (io.ReadCloser, error) { return b.Open(ctx) }, into)
	if e := done(); err == nil {
		err = e
	}
	switch {
	case alone && errors.Is(err, layer.ErrBelow):
		return nil, fmt.Errorf("%w: %w", errInPlace, err)
	case err != nil:
		return nil, err
	case res.DiffID != l.DiffID:
		return nil, fmt.Errorf("its content is %s where %s is wanted: %w", res.DiffID, l.DiffID, errdefs.ErrFailedPrecondition)
	}
	if res.Dropped > 0 {
		c.s.log.Info("left out extended attributes of a layer", "digest", l.Digest, "count", res.Dropped)
	}
	return t, nil
}

// settle makes a tree what it is to be for good. As in a commit, the note is
// written before the tree is durable.
func (c *unpacking) settle(ctx context.Context, l *rising, t *sapling) error {
	on := c.below(l)
	now := time.Now().UTC()
	l.made = record{ID: t.ID, Kind: snapshot.Committed, Parent: l.parent, Labels: label.Clean(l.Labels), Created: now, Updated: now}
	l.origin = origin{Layers: []extracted{{l.MediaType, l.Digest, l.Size, l.DiffID}}}
	if err := c.s.tell(note{c.owner(l.name), l.made, l.origin, false}); err != nil {
		return err
	}
	as := c.known(l.name, l.made, on)
	// Landing syncs too, once for many; what the last one waits for is begun
	// here.
	last := !slices.ContainsFunc(c.layers, func(o *rising) bool { return o != l && !o.isSettled() })
	m, err := firm(ctx, c.d, c.snapshotter, t.Snapshot, as, last)
	if err != nil {
		return err
	}
	c.mu.Lock()
	t.Ref = as.Ref
	c.mu.Unlock()
	l.made.Inodes, l.made.Size, l.origin.Sum = m.Inodes, m.Size, m.sum
	l.own, l.trees = t, append([]driver.Ref{as.Ref}, slices.Clone(on)...)
	return nil
}
