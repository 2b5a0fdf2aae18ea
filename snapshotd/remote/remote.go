// Package remote reaches a snapshotter that is another process, over containerd's
// own protocol for that (a proxy plugin). The other end is named by whoever
// configured it, and trusted as one who may mount; what it says is checked as
// far as it would harm whoever keeps it.
//
// It is called by the names that driver.Ref has, with the namespace and without
// the lease, and is told only the labels that are handed down. Every call has a
// deadline and a place among those under way. Where several in a row got no
// answer, those that follow are refused at once, for a while: a process that is
// away or hangs is normal, and nobody else waits for it.
package remote

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
)

// How long a call may take. Whoever prepares a snapshot may ask a registry for it
// first, and whoever commits or removes one may have files to move.
const (
	makeTime  = 2 * time.Minute
	askTime   = 20 * time.Second
	countTime = time.Minute
)

// A Driver is one external snapshotter.
type Driver struct {
	name   string
	stores snapshot.Stores
	traits driver.Traits
	kernel kernel.Kernel
	line   *line
}

var _ driver.Driver = (*Driver)(nil)

// New returns the snapshotter of that name at the other end of stores, of which
// somebody said what it does beyond the contract.
func New(name string, stores snapshot.Stores, t snapshot.Traits, k kernel.Kernel) *Driver {
	return &Driver{name: name, stores: stores, traits: driver.Traits{Traits: t, Views: true}, kernel: k, line: newLine(name)}
}

// Traits implements driver.Driver.
func (d *Driver) Traits() driver.Traits { return d.traits }

// call calls the snapshots of a namespace.
func (d *Driver) call(ctx context.Context, ns string, limit time.Duration, f func(context.Context, snapshot.Store) error) error {
	return d.line.call(ctx, limit, func(ctx context.Context) error {
		s, err := d.stores.In(namespace.Scope{Name: ns}, d.name)
		if err != nil {
			return err
		}
		return f(ctx, s)
	})
}

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, s driver.Snapshot) error {
	_, err := d.Prepare(ctx, s)
	return err
}

// Prepare is Create, and returns what to mount. The key is new: that it exists
// can only mean the target of the label.
func (d *Driver) Prepare(ctx context.Context, s driver.Snapshot) (mounts []mount.Mount, err error) {
	o := snapshot.Options{Labels: s.Labels}
	err = d.call(ctx, s.Namespace, makeTime, func(ctx context.Context, store snapshot.Store) (err error) {
		if s.Kind == snapshot.View {
			mounts, err = store.View(ctx, s.Key, above(s.Parents), o)
		} else {
			mounts, err = store.Prepare(ctx, s.Key, above(s.Parents), o)
		}
		return err
	})
	switch {
	case errors.Is(err, errdefs.ErrAlreadyExists) && s.Labels[snapshot.LabelTarget] == "":
		return nil, fmt.Errorf("snapshotter %s has a new key already: %v: %w", d.name, err, errdefs.ErrUnknown)
	case err != nil:
		return nil, err
	}
	return mounts, d.check(mounts)
}

// above is the key of the parent, or nothing.
func above(parents []driver.Ref) string {
	if len(parents) == 0 {
		return ""
	}
	return parents[0].Key
}

// Mounts implements driver.Driver.
func (d *Driver) Mounts(ctx context.Context, s driver.Snapshot) (mounts []mount.Mount, err error) {
	err = d.call(ctx, s.Namespace, askTime, func(ctx context.Context, store snapshot.Store) error {
		mounts, err = store.Mounts(ctx, s.Key)
		return err
	})
	if err != nil {
		return nil, err
	}
	return mounts, d.check(mounts)
}

const (
	// mountsMax is how many mounts a snapshot has at most, and mountsSize how
	// many bytes their text is long.
	mountsMax  = 256
	mountsSize = 256 << 10
)

// check refuses mounts that would be a burden to whoever keeps them.
func (d *Driver) check(mounts []mount.Mount) error {
	size := 0
	for _, m := range mounts {
		for _, text := range append([]string{m.Type, m.Source, m.Target}, m.Options...) {
			size += len(text) + 1
			if strings.ContainsRune(text, 0) {
				return fmt.Errorf("snapshotter %s: a mount with a zero byte in it: %w", d.name, errdefs.ErrUnknown)
			}
		}
	}
	if len(mounts) > mountsMax || size > mountsSize {
		return fmt.Errorf("snapshotter %s: %d mounts of %d bytes: %w", d.name, len(mounts), size, errdefs.ErrUnknown)
	}
	return nil
}

// Commit implements driver.Driver. What was committed by a call whose answer did
// not arrive is found committed by the next.
func (d *Driver) Commit(ctx context.Context, s, as driver.Snapshot) (u snapshot.Usage, err error) {
	o := snapshot.Options{Labels: as.Labels}
	if len(s.Parents) == 0 {
		o.Parent = above(as.Parents)
	}
	err = d.call(ctx, as.Namespace, makeTime, func(ctx context.Context, store snapshot.Store) error {
		return store.Commit(ctx, as.Key, s.Key, o)
	})
	if errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, errdefs.ErrAlreadyExists) {
		before, statErr := d.Committed(ctx, as)
		switch {
		case statErr != nil:
			return u, statErr
		case before:
			err = nil
		case errors.Is(err, errdefs.ErrAlreadyExists):
			err = fmt.Errorf("snapshotter %s has a new name already: %v: %w", d.name, err, errdefs.ErrUnknown)
		}
	}
	if err != nil {
		return u, err
	}
	u, err = d.Usage(ctx, as)
	if errors.Is(err, errdefs.ErrNotImplemented) {
		return snapshot.Usage{}, nil
	}
	return u, err
}

// Committed tells whether there is a committed snapshot of that key and parent.
func (d *Driver) Committed(ctx context.Context, s driver.Snapshot) (bool, error) {
	i, err := d.stat(ctx, s)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	return err == nil && i.Kind == snapshot.Committed && i.Parent == above(s.Parents), err
}

func (d *Driver) stat(ctx context.Context, s driver.Snapshot) (i snapshot.Info, err error) {
	err = d.call(ctx, s.Namespace, askTime, func(ctx context.Context, store snapshot.Store) error {
		i, err = store.Stat(ctx, s.Key)
		return err
	})
	return i, err
}

// Usage implements driver.Driver.
func (d *Driver) Usage(ctx context.Context, s driver.Snapshot) (u snapshot.Usage, err error) {
	err = d.call(ctx, s.Namespace, countTime, func(ctx context.Context, store snapshot.Store) error {
		u, err = store.Usage(ctx, s.Key)
		return err
	})
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		return u, fmt.Errorf("%w: %w", err, os.ErrNotExist)
	case err == nil && (u.Size < 0 || u.Inodes < 0):
		return snapshot.Usage{}, fmt.Errorf("snapshotter %s: usage of %d bytes, %d inodes: %w", d.name, u.Size, u.Inodes, errdefs.ErrUnknown)
	}
	return u, err
}

// Remove implements driver.Driver.
func (d *Driver) Remove(ctx context.Context, r driver.Ref) error {
	err := d.call(ctx, r.Namespace, makeTime, func(ctx context.Context, store snapshot.Store) error {
		return store.Remove(ctx, r.Key)
	})
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	return err
}

// Tidy lets the snapshotter remove what removals left, if it does that apart.
func (d *Driver) Tidy(ctx context.Context, ns string) error {
	err := d.call(ctx, ns, makeTime, func(ctx context.Context, store snapshot.Store) error { return store.Cleanup(ctx) })
	if errors.Is(err, errdefs.ErrNotImplemented) {
		return nil
	}
	return err
}

// Find implements driver.Driver. Whose mounts are whose is known to whoever
// passed them on.
func (d *Driver) Find([]mount.Mount) (driver.Found, bool) { return driver.Found{}, false }

// IDs implements driver.Driver. The other end is not asked: it may serve others
// too, and what it has in vain was noted before it had it.
func (d *Driver) IDs(context.Context) ([]uint64, error) { return nil, nil }

// Has implements driver.Driver.
func (d *Driver) Has(ctx context.Context, s driver.Snapshot) bool {
	_, err := d.stat(ctx, s)
	return !errors.Is(err, errdefs.ErrNotFound)
}
