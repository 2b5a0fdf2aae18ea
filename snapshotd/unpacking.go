package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/unpack"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// An unpacking is one call of Unpack. Its layers are extracted at the same time
// and landed in order.
type unpacking struct {
	snapshots
	lease  lease.Ref
	layers []*rising

	fail context.CancelCauseFunc // of run
	work sync.WaitGroup

	// mu guards made, the trees that are not a snapshot's yet.
	mu   sync.Mutex
	made []*sapling
}

// A rising layer becomes a snapshot. What is not atomic is written before
// settled is closed, by whoever closes it, and read after that.
type rising struct {
	unpack.Layer
	index        int
	name, parent string
	flight       atomic.Pointer[flight] // its own, or that of somebody else
	mine         *flight                // its own, while that is to be ended

	sown    *sapling      // the last that was made for it
	settled chan struct{} // closed when nothing will change any more
	trees   []driver.Ref  // of the snapshot and what is below, the topmost first
	own     *sapling      // nil if it is there already, or somebody else made it
	made    record        // of own
	origin  origin        // of own
}

// A sapling is a tree that is not a snapshot's yet. It has no record: what a
// crash leaves of it is found when the store is opened.
type sapling struct {
	driver.Snapshot
	release func() // see Store.hold, and Store.make
}

// begin looks what there is already, which becomes a resource of the lease.
func (u unpacker) begin(ctx context.Context, layers []unpack.Layer) (*unpacking, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	names, err := unpack.Names(layers)
	if err != nil {
		return nil, err
	}
	c := &unpacking{snapshots: u.snapshots}
	if c.lease, err = u.s.lookup(ctx, u.scope); err != nil {
		return nil, err
	}
	parent := ""
	for i, name := range names {
		l := &rising{Layer: layers[i], index: i, name: name, parent: parent, settled: make(chan struct{})}
		l.flight.Store(newFlight(l.Layer, unpack.Waiting))
		c.layers = append(c.layers, l)
		parent = name
	}
	found := 0
	find := func(tx *kv.Tx) (err error) {
		found, err = c.findExisting(tx)
		return err
	}
	if c.lease.ID == "" {
		err = u.s.db.Look(ctx, find)
	} else {
		err = u.s.db.Update(ctx, find)
	}
	if err != nil {
		return nil, err
	}
	for _, l := range c.layers[:found] {
		l.flight.Store(newFlight(l.Layer, unpack.Existed))
		close(l.settled)
	}
	return c, nil
}

// findExisting returns how many layers are there, from the lowest on.
func (c *unpacking) findExisting(tx *kv.Tx) (int, error) {
	for i, l := range c.layers {
		there, err := c.use(tx, l, c.lease)
		if err != nil || !there {
			return i, err
		}
	}
	return len(c.layers), nil
}

// use makes the snapshot that is there a layer's, and a resource of the lease.
func (c *unpacking) use(tx *kv.Tx, l *rising, lease lease.Ref) (there bool, err error) {
	r, err := c.find(tx, l.name)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	if err == nil && r.Kind != snapshot.Committed {
		err = fmt.Errorf("snapshot %s is not committed: %w", l.name, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return false, err
	}
	c.touch(l.name)
	l.trees, err = c.chain(tx, l.name)
	return true, errors.Join(err, c.join(tx, lease, l.name))
}

func (l *rising) progress() unpack.Progress {
	f := l.flight.Load()
	p := unpack.Progress{Layer: l.index, Name: l.name, Phase: f.phase.Load().(unpack.Phase), Done: f.read.Load(), Total: l.Size}
	if p.Phase == unpack.Settled || p.Phase == unpack.Committed {
		p.Done = max(p.Done, l.Size)
	}
	return p
}

func (c *unpacking) key(l *rising) flightKey { return flightKey{c.shelf, l.name} }

// run unpacks what is not there.
func (c *unpacking) run(ctx context.Context) error {
	ctx, c.fail = context.WithCancelCause(ctx)
	c.work.Go(func() { c.dispatch(ctx) })
	err := c.land(ctx)
	c.fail(errGivenUp)
	c.work.Wait()
	c.endFlights(err)
	c.clear()
	return err
}

// dispatch begins with the layers in their order: the lowest have the first
// places. A layer that has to wait for something else waits without a place.
func (c *unpacking) dispatch(ctx context.Context) {
	for i, l := range c.layers {
		if l.isSettled() {
			continue
		}
		var leave func()
		if c.take(l) && l.Ingest == "" && (i == 0 || c.detaches()) {
			var err error
			if leave, err = c.s.place(ctx); err != nil {
				return
			}
		}
		c.work.Go(func() {
			if err := c.rise(ctx, l, leave); err != nil {
				c.fail(&layerError{l, err})
			}
		})
	}
}

// A layerError is why a layer cannot be unpacked.
type layerError struct {
	layer *rising
	err   error
}

func (e *layerError) Error() string {
	return fmt.Sprintf("layer %d, %s: %v", e.layer.index, e.layer.Digest, e.err)
}

func (e *layerError) Unwrap() error { return e.err }

// detaches tells whether layers can be extracted before those below them.
func (c *unpacking) detaches() bool { return c.d.Traits().Rebase }

func (l *rising) isSettled() bool {
	select {
	case <-l.settled:
		return true
	default:
		return false
	}
}

// place waits for one among those who extract.
func (s *Store) place(ctx context.Context) (leave func(), err error) {
	select {
	case s.applies <- struct{}{}:
		return sync.OnceFunc(func() { <-s.applies }), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// take takes the flight of a layer, unless somebody else has.
func (c *unpacking) take(l *rising) (mine bool) {
	f, mine := c.s.flights.take(c.key(l), l.Layer)
	l.flight.Store(f)
	if mine {
		l.mine = f
	}
	return mine
}

// rise brings a layer to be settled, by the call's own work or that of whoever
// does it already. leave, if there is one, gives up the place that it has.
func (c *unpacking) rise(ctx context.Context, l *rising, leave func()) error {
	for l.mine == nil {
		f := l.flight.Load()
		select {
		case <-f.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if f.err != nil && f.concerns(l.Layer) {
			return f.err
		}
		if f.err == nil {
			there := false
			if err := c.s.db.View(func(tx *kv.Tx) (err error) {
				// Landing makes it a resource of the lease.
				there, err = c.use(tx, l, lease.Ref{})
				return err
			}); err != nil {
				return err
			}
			if there {
				close(l.settled)
				return nil
			}
		}
		c.take(l)
	}
	return c.grow(ctx, l, leave)
}

// endFlights gives up what was not landed. Who waits for a layer learns why only
// if that layer is the reason.
func (c *unpacking) endFlights(err error) {
	var why *layerError
	errors.As(err, &why)
	for _, l := range c.layers {
		switch {
		case l.mine == nil:
		case why != nil && why.layer == l:
			c.s.flights.end(c.key(l), l.mine, why.err)
		default:
			c.s.flights.end(c.key(l), l.mine, errGivenUp)
		}
	}
}

// clearTime is how long the trash may take to be written.
const clearTime = 10 * time.Second

// clear gives the trees that did not become snapshots to the collector.
func (c *unpacking) clear() {
	c.mu.Lock()
	made := c.made
	c.made = nil
	c.mu.Unlock()
	c.discard(made)
}

// discard gives trees to the collector that nobody works on.
func (c *unpacking) discard(made []*sapling) {
	if len(made) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), clearTime)
	defer cancel()
	now := time.Now().UTC()
	err := c.s.db.Release(ctx, func(tx *kv.Tx) error {
		var errs []error
		for _, t := range made {
			errs = append(errs, raiseLast(tx, t.ID), tx.PutJSON(trashKey(t.ID), trash{now, c.snapshotter, t.Key}))
		}
		return errors.Join(errs...)
	})
	for _, t := range made {
		t.release()
	}
	if err != nil {
		c.s.log.Warn("what was left of layers stays on disk until the store is opened again", "count", len(made), "err", err)
		return
	}
	c.s.ring()
}

// disown takes a tree from the list of those that are cleared away at the end.
func (c *unpacking) disown(t *sapling) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made = slices.DeleteFunc(c.made, func(other *sapling) bool { return other == t })
}
