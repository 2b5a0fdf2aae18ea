package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
	"github.com/gantryd/gantry/snapshotd/remote"
)

// An external is a snapshotter that is another process. It has no place in the
// directories, and Open does not ask it for anything.
type external struct {
	*remote.Driver
	name string
	wake chan struct{} // has an item when there is something to collect
}

// connect makes the external snapshotters that the config names.
func (s *Store) connect(k kernel.Kernel) error {
	for name, p := range s.cfg.Proxies {
		stores := s.needs.Proxies[name]
		if stores == nil {
			return fmt.Errorf("snapshotter %s: nobody reaches it: %w", name, errdefs.ErrInvalidArgument)
		}
		s.externals[name] = &external{Driver: remote.New(name, stores, p.traits(), k), name: name, wake: make(chan struct{}, 1)}
	}
	return nil
}

// An outside is the snapshots of one scope in an external snapshotter. What is to
// be made there is noted before, so that what a crash leaves there is known.
type outside struct {
	snapshots
	e *external
}

var _ snapshot.Store = outside{}

// Stat implements snapshot.Store. Labels that only the snapshotter knows of are
// among the others.
func (n outside) Stat(ctx context.Context, key string) (snapshot.Info, error) {
	r, chain, err := n.read(key)
	if err != nil {
		return snapshot.Info{}, err
	}
	labels, err := n.e.Labels(ctx, n.known(key, r, chain))
	if errors.Is(err, errdefs.ErrNotFound) {
		err = n.interrupted(r, err)
	}
	if err != nil {
		return snapshot.Info{}, fmt.Errorf("snapshot %s: %w", key, err)
	}
	i := r.info(key)
	if len(labels) > 0 {
		maps.Copy(labels, i.Labels)
		i.Labels = labels
	}
	return i, nil
}

// interrupted is nil in place of an error if the snapshotter was told to commit
// what is active here, and nobody heard that it did: it is still to be committed.
func (n outside) interrupted(r record, failed error) error {
	return n.s.db.View(func(tx *kv.Tx) error {
		if _, began, err := begunOf(tx, r.ID); began || err != nil {
			return err
		}
		return failed
	})
}

// Update implements snapshot.Store. The snapshotter is told first: the record
// says what is true of both.
func (n outside) Update(ctx context.Context, info snapshot.Info, fields ...string) (snapshot.Info, error) {
	r, chain, err := n.read(info.Name)
	if err != nil {
		return snapshot.Info{}, err
	}
	if r.Labels, err = label.Update(r.Labels, info.Labels, fields); err != nil {
		return snapshot.Info{}, err
	}
	if _, err := snapshot.IDs(r.Labels); err != nil {
		return snapshot.Info{}, err
	}
	if err := n.e.Relabel(ctx, n.known(info.Name, r, chain), fields...); err != nil {
		return snapshot.Info{}, fmt.Errorf("snapshot %s: %w", info.Name, err)
	}
	return n.snapshots.Update(ctx, info, fields...)
}

// Mounts implements snapshot.Store. They may be others than before, as after the
// snapshotter was started anew.
func (n outside) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	mounts, err := n.snapshots.Mounts(ctx, key)
	if err != nil {
		return nil, err
	}
	r, _, err := n.read(key)
	if err != nil {
		return nil, err
	}
	return mounts, n.s.remember(ctx, r.ID, mounts)
}

// Prepare implements snapshot.Store.
func (n outside) Prepare(ctx context.Context, key, parent string, o snapshot.Options) ([]mount.Mount, error) {
	return n.create(ctx, snapshot.Active, key, parent, o)
}

// View implements snapshot.Store.
func (n outside) View(ctx context.Context, key, parent string, o snapshot.Options) ([]mount.Mount, error) {
	return n.create(ctx, snapshot.View, key, parent, o)
}

// createTries is how often a target that the snapshotter has is looked for again,
// because it was removed meanwhile.
const createTries = 3

func (n outside) create(ctx context.Context, kind snapshot.Kind, key, parent string, o snapshot.Options) (mounts []mount.Mount, err error) {
	o.Parent = ""
	if err := errors.Join(snapshot.CheckKey(key), o.Check(n.d.Traits().Traits)); err != nil {
		return nil, err
	}
	l, err := n.s.lookup(ctx, n.scope)
	if err != nil {
		return nil, err
	}
	for range createTries {
		mounts, err = n.createOnce(ctx, l, kind, key, parent, o)
		if !errors.Is(err, errTargetGone) {
			break
		}
	}
	return mounts, err
}

func (n outside) createOnce(ctx context.Context, l lease.Ref, kind snapshot.Kind, key, parent string, o snapshot.Options) ([]mount.Mount, error) {
	chain, err := n.vacant(ctx, l, key, parent, o)
	if err != nil {
		return nil, err
	}
	r := record{ID: n.s.last.Add(1), Kind: kind, Parent: parent, Labels: label.Clean(o.Labels)}
	own := n.known(key, r, chain)
	if err := n.s.begin(ctx, begun{Snapshotter: n.snapshotter, Ref: own.Ref, Name: key}); err != nil {
		return nil, err
	}
	mounts, err := n.e.Prepare(ctx, own)
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return nil, errors.Join(n.adopt(ctx, l, own, r, o), n.s.giveUp(ctx, r.ID))
	}
	var taken string
	if err == nil {
		taken, err = n.insert(ctx, l, key, &r, o, chain)
	}
	if err == nil && taken != "" {
		err = errTaken(taken)
	}
	if err != nil {
		return nil, errors.Join(err, n.s.giveUp(ctx, r.ID))
	}
	return mounts, n.s.finished(ctx, r.ID, mounts)
}

var errTargetGone = fmt.Errorf("what the snapshotter had in its place is gone: %w", errdefs.ErrNotFound)

// adopt makes the committed snapshot that the snapshotter has in place of own one
// of the namespace, under the name that the label says. It always returns an
// error, [errdefs.ErrAlreadyExists] if that was done.
func (n outside) adopt(ctx context.Context, l lease.Ref, own driver.Snapshot, r record, o snapshot.Options) error {
	found, err := n.e.Target(ctx, own)
	if err != nil {
		return err
	}
	release, err := n.s.hold(ctx, sharedID(n.snapshotter, found.Name))
	if err != nil {
		return err
	}
	defer release()
	it := driver.Snapshot{Ref: driver.Ref{Namespace: n.namespace, Key: found.Name}, Kind: snapshot.Committed, Parents: own.Parents}
	switch there, err := n.e.Committed(ctx, it); {
	case err != nil:
		return err
	case !there:
		return errTargetGone
	}
	u, err := n.e.Usage(ctx, it)
	if err != nil && !errors.Is(err, errdefs.ErrNotImplemented) {
		return err
	}
	now := time.Now().UTC()
	a := record{
		ID: n.s.last.Add(1), Kind: snapshot.Committed, Parent: r.Parent, Labels: found.Labels,
		Created: found.CreatedAt, Updated: found.UpdatedAt, Inodes: u.Inodes, Size: u.Size, Key: found.Name,
	}
	if a.Created.IsZero() || a.Updated.IsZero() {
		a.Created, a.Updated = now, now
	}
	if a.Labels == nil {
		a.Labels = make(map[string]string)
	}
	maps.Copy(a.Labels, label.Clean(o.Labels))
	name := o.Labels[snapshot.LabelTarget]
	if err := n.s.db.Update(ctx, func(tx *kv.Tx) error { return n.adoptAs(tx, l, name, a, own.Parents) }); err != nil {
		return err
	}
	return fmt.Errorf("snapshot %s, which snapshotter %s has: %w", name, n.snapshotter, errdefs.ErrAlreadyExists)
}

// adoptAs writes the record of what was adopted, unless somebody else did.
func (n outside) adoptAs(tx *kv.Tx, l lease.Ref, name string, a record, parents []driver.Ref) error {
	exists, err := n.exists(tx, name)
	if err != nil {
		return err
	}
	if exists {
		n.touch(name)
		return n.join(tx, l, name)
	}
	chain, err := n.below(tx, a.Parent)
	if err != nil {
		return err
	}
	if !slices.Equal(chain, parents) {
		return fmt.Errorf("target %s has another parent than %s: %w", name, a.Parent, errdefs.ErrInvalidArgument)
	}
	return errors.Join(
		raiseLast(tx, a.ID),
		n.put(tx, name, a, n.d.Traits()),
		tx.PutJSON(sharedKey(n.snapshotter, a.Key, a.ID), n.namespace),
		n.join(tx, l, name))
}

// Cleanup implements snapshot.Store.
func (n outside) Cleanup(ctx context.Context) error { return n.s.emptyExternal(ctx, n.e) }
