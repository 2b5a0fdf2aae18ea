package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// snapshots are those of one scope in one snapshotter.
type snapshots struct {
	s     *Store
	scope namespace.Scope
	d     driver.Driver
	shelf
}

var _ snapshot.Store = snapshots{}

// Stat implements snapshot.Store.
func (n snapshots) Stat(_ context.Context, key string) (snapshot.Info, error) {
	r, _, err := n.read(key)
	return r.info(key), err
}

// read returns a record and the trees of its parents.
func (n snapshots) read(key string) (r record, chain []driver.Ref, err error) {
	err = n.s.db.View(func(tx *kv.Tx) error {
		if r, err = n.find(tx, key); err != nil {
			return err
		}
		chain, err = n.chain(tx, r.Parent)
		return err
	})
	return r, chain, err
}

// Update implements snapshot.Store.
func (n snapshots) Update(ctx context.Context, info snapshot.Info, fields ...string) (snapshot.Info, error) {
	var updated snapshot.Info
	now := note{owner: n.owner(info.Name), Whole: true}
	err := n.s.db.Update(ctx, func(tx *kv.Tx) error {
		r, err := n.get(tx, info.Name)
		if err != nil {
			return err
		}
		if r.Labels, err = label.Update(r.Labels, info.Labels, fields); err != nil {
			return err
		}
		if _, err := snapshot.IDs(r.Labels); err != nil {
			return err
		}
		r.Updated = time.Now().UTC()
		if updated, now.record = r.info(info.Name), r; r.Kind == snapshot.Committed {
			if now.Origin, err = originOf(tx, r.ID); err != nil {
				return err
			}
		}
		return tx.PutJSON(n.recordKey(info.Name), r)
	})
	if err != nil {
		return snapshot.Info{}, err
	}
	if now.Kind == snapshot.Committed {
		n.s.tellLater(now)
	}
	return updated, nil
}

// Usage implements snapshot.Store.
func (n snapshots) Usage(ctx context.Context, key string) (snapshot.Usage, error) {
	r, chain, err := n.read(key)
	if err != nil {
		return snapshot.Usage{}, err
	}
	if r.Kind != snapshot.Active {
		return snapshot.Usage{Inodes: r.Inodes, Size: r.Size}, nil
	}
	u, err := n.d.Usage(ctx, n.known(key, r, chain))
	if errors.Is(err, os.ErrNotExist) {
		return snapshot.Usage{}, fmt.Errorf("snapshot %s: %w", key, errdefs.ErrNotFound) // removed meanwhile
	}
	return u, err
}

// Mounts implements snapshot.Store.
func (n snapshots) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	r, chain, err := n.read(key)
	if err != nil {
		return nil, err
	}
	if r.Kind == snapshot.Committed {
		return nil, fmt.Errorf("snapshot %s is committed: %w", key, errdefs.ErrFailedPrecondition)
	}
	return n.d.Mounts(ctx, n.known(key, r, chain))
}

// Prepare implements snapshot.Store.
func (n snapshots) Prepare(ctx context.Context, key, parent string, o snapshot.Options) ([]mount.Mount, error) {
	return n.create(ctx, snapshot.Active, key, parent, o)
}

// View implements snapshot.Store.
func (n snapshots) View(ctx context.Context, key, parent string, o snapshot.Options) ([]mount.Mount, error) {
	return n.create(ctx, snapshot.View, key, parent, o)
}

func (n snapshots) create(ctx context.Context, kind snapshot.Kind, key, parent string, o snapshot.Options) ([]mount.Mount, error) {
	o.Parent = ""
	if err := errors.Join(snapshot.CheckKey(key), o.Check(n.d.Traits().Traits)); err != nil {
		return nil, err
	}
	l, err := n.s.lookup(ctx, n.scope)
	if err != nil {
		return nil, err
	}
	chain, err := n.vacant(ctx, l, key, parent, o)
	if err != nil {
		return nil, err
	}
	r := record{ID: n.s.last.Add(1), Kind: kind, Parent: parent, Labels: label.Clean(o.Labels), Created: time.Now().UTC()}
	// The tree before the record: a record has a tree at any moment. It is not
	// synced: before its commit nothing in it is durable, and if it is lost,
	// Open makes it anew.
	own := n.known(key, r, chain)
	defer n.s.make(r.ID)()
	if r.hasTree(n.d.Traits()) {
		n.s.tellLater(note{owner: n.owner(key), record: r})
		if err := n.d.Create(ctx, own); err != nil {
			return nil, errors.Join(fmt.Errorf("snapshot %s: %w", key, err), n.abandon(own.Ref))
		}
	}
	taken, err := n.insert(ctx, l, key, &r, o, chain)
	if err == nil && taken != "" {
		err = errTaken(taken)
	}
	if err != nil {
		return nil, errors.Join(err, n.abandon(own.Ref))
	}
	return n.d.Mounts(ctx, own)
}

func errTaken(name string) error {
	return fmt.Errorf("snapshot %s: %w", name, errdefs.ErrAlreadyExists)
}

// vacant returns the trees under a snapshot that is to be made. One that is there
// already becomes a resource of the lease, and no tree is made in vain.
func (n snapshots) vacant(ctx context.Context, l lease.Ref, key, parent string, o snapshot.Options) (chain []driver.Ref, err error) {
	for {
		var taken string
		if err := n.s.db.View(func(tx *kv.Tx) error {
			if taken, err = n.taken(tx, key, o); taken != "" || err != nil {
				return err
			}
			chain, err = n.below(tx, parent)
			return err
		}); err != nil || taken == "" {
			return chain, err
		}
		if err := n.s.db.Update(ctx, func(tx *kv.Tx) error {
			if taken, err = n.taken(tx, key, o); taken == "" || err != nil {
				return err // it went meanwhile
			}
			n.touch(taken)
			return n.join(tx, l, taken)
		}); err != nil {
			return nil, err
		}
		if taken != "" {
			return nil, errTaken(taken)
		}
	}
}

// taken returns the name of the snapshot that is there already in the place of
// the one to be made, if any.
func (n snapshots) taken(tx *kv.Tx, key string, o snapshot.Options) (string, error) {
	for _, name := range []string{o.Labels[snapshot.LabelTarget], key} {
		if name == "" {
			continue
		}
		if exists, err := n.exists(tx, name); exists || err != nil {
			return name, err
		}
	}
	return "", nil
}

// below returns the trees under a child of parent, which may be none.
func (n snapshots) below(tx *kv.Tx, parent string) ([]driver.Ref, error) {
	if parent == "" {
		return nil, nil
	}
	if err := n.checkParent(tx, parent); err != nil {
		return nil, err
	}
	return n.chain(tx, parent)
}

// insert writes the record of a new snapshot, unless there is one already,
// which becomes a resource of the lease in its place. Its tree was made on chain.
func (n snapshots) insert(ctx context.Context, l lease.Ref, key string, r *record, o snapshot.Options, chain []driver.Ref) (taken string, err error) {
	err = n.s.db.Update(ctx, func(tx *kv.Tx) error {
		if taken, err = n.taken(tx, key, o); err != nil {
			return err
		}
		if taken != "" {
			n.touch(taken)
			return n.join(tx, l, taken)
		}
		switch now, err := n.below(tx, r.Parent); {
		case err != nil:
			return err
		case !slices.Equal(now, chain):
			// The parent was removed and made again meanwhile.
			return fmt.Errorf("parent snapshot %s: %w", r.Parent, errdefs.ErrNotFound)
		}
		r.Created = time.Now().UTC()
		r.Updated = r.Created
		if err := errors.Join(raiseLast(tx, r.ID), n.put(tx, key, *r, n.d.Traits()), n.join(tx, l, key)); err != nil {
			return err
		}
		if r.Kind != snapshot.Active {
			return nil
		}
		// Told only if it is true: same transaction, published by the outbox.
		return n.s.box.Add(ctx, tx, event.New(n.namespace, r.Created, event.SnapshotPrepare{
			Key: key, Parent: r.Parent, Snapshotter: n.snapshotter,
		}))
	})
	return taken, err
}

// abandonTime is how long the tree of a snapshot that was not made may take to
// go.
const abandonTime = 30 * time.Second

// abandon removes a tree that got no record. What it leaves, Open finds.
func (n snapshots) abandon(r driver.Ref) error {
	ctx, cancel := context.WithTimeout(context.Background(), abandonTime)
	defer cancel()
	return errors.Join(n.s.untell(n.snapshotter, r.ID), n.d.Remove(ctx, r))
}

// Remove implements snapshot.Store.
func (n snapshots) Remove(ctx context.Context, key string) error {
	err := n.s.db.Release(ctx, func(tx *kv.Tx) error {
		r, err := n.get(tx, key)
		if err != nil {
			return err
		}
		if n.hasChild(tx, key) {
			return fmt.Errorf("snapshot %s: cannot remove snapshot with child: %w", key, errdefs.ErrFailedPrecondition)
		}
		now := time.Now().UTC()
		if err := errors.Join(n.drop(tx, key, r), n.leave(tx, n.scope.Lease, key)); err != nil {
			return err
		}
		if r.hasTree(n.d.Traits()) {
			// The files are garbage from this moment, whatever happens next.
			if err := tx.PutJSON(trashKey(r.ID), trash{now, n.snapshotter, n.ref(key, r).Key}); err != nil {
				return err
			}
		}
		return n.s.box.Add(ctx, tx, event.New(n.namespace, now, event.SnapshotRemove{Key: key, Snapshotter: n.snapshotter}))
	})
	if err != nil {
		return err
	}
	n.s.ring()
	return nil
}

// pageMax is how many records of a list are read at once.
const pageMax = 250

// List implements snapshot.Store. Nothing is held while the caller works.
func (n snapshots) List(ctx context.Context, filters ...string) iter.Seq2[snapshot.Info, error] {
	return func(yield func(snapshot.Info, error) bool) {
		f, err := filter.Parse(filters...)
		if err != nil {
			yield(snapshot.Info{}, err)
			return
		}
		for from := n.recordKey(""); from != nil; {
			var page []snapshot.Info
			if page, from, err = n.page(ctx, from); err != nil {
				yield(snapshot.Info{}, err)
				return
			}
			for _, i := range page {
				if f.Match(i.Field) && !yield(i, nil) {
					return
				}
			}
		}
	}
}

// page reads records from a key on, and returns where the next page begins.
func (n snapshots) page(ctx context.Context, from []byte) (page []snapshot.Info, next []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	err = n.s.db.View(func(tx *kv.Tx) error {
		for key, value := range tx.Scan(n.recordKey(""), from) {
			if len(page) == pageMax {
				next = key
				return nil
			}
			name := kv.Parts(key)[3]
			if n.s.gate.Hidden(n.node(name)) {
				continue
			}
			var r record
			if err := r.UnmarshalJSON(value); err != nil {
				return fmt.Errorf("snapshot %s: %v: %w", name, err, errdefs.ErrDataLoss)
			}
			page = append(page, r.info(name))
		}
		return nil
	})
	return page, next, err
}

// Cleanup implements snapshot.Store.
func (n snapshots) Cleanup(ctx context.Context) error { return n.s.empty(ctx) }
