package mounter

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
)

const (
	// makeTime is how long an activation may take.
	makeTime = 2 * time.Minute

	// makes is how many activations are made at once; others wait.
	makes = 16

	// leaseTime is how long the registry of leases may take for an answer.
	leaseTime = 10 * time.Second
)

// Records are the rows of the daemon's database.
type Records interface {
	View(fn func(tx *kv.Tx) error) error
	Update(ctx context.Context, fn func(tx *kv.Tx) error) error
	Release(ctx context.Context, fn func(tx *kv.Tx) error) error // takes away; goes on when the disk is nearly full
}

// Members are the resources of leases.
type Members interface {
	// Join makes r a resource of a lease, if there is one, and Leave takes it
	// from every lease of an id.
	Join(tx *kv.Tx, ns string, l lease.Ref, r lease.Resource) error
	Leave(tx *kv.Tx, ns, lease string, r lease.Resource) error
}

// Needs are what a Store stands on.
type Needs struct {
	Records Records
	Leases  lease.Registry
	Members Members
	Places  Places
	Log     *slog.Logger

	FreeMin int64 // bytes of free disk that images leave alone

	// Hidden says that the collector is about to remove an activation, which
	// then is not to be found; nil is none.
	Hidden func(ns, name string) bool
}

// A Store makes activations.
type Store struct {
	dir    string
	needs  Needs
	kernel kernel
	boot   string
	lock   *dirLock

	last  atomic.Uint64 // id handed out
	wake  chan struct{} // has an item when there is something to unmount
	makes chan struct{} // has an item for each activation being made

	// mu guards held, the activations that are being made or undone, by the
	// keys of their records. The channel is closed when the holder lets go.
	mu   sync.Mutex
	held map[string]chan struct{}
}

var _ activation.Stores = (*Store)(nil)

// Open returns the activations whose mounts are in dir. It leaves to Collect
// what is not active, and what was before a boot. A directory that another
// process uses is [errdefs.ErrFailedPrecondition].
func Open(dir string, needs Needs) (*Store, error) { return open(dir, needs, linux{needs.FreeMin}) }

func open(dir string, needs Needs, k kernel) (*Store, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{
		dir: dir, needs: needs, kernel: k, boot: boot, lock: lock,
		wake:  make(chan struct{}, 1),
		makes: make(chan struct{}, makes),
		held:  make(map[string]chan struct{}),
	}
	if err := s.reconcile(); err != nil {
		return nil, errors.Join(fmt.Errorf("activations: %w", err), lock.Close())
	}
	return s, nil
}

// Close lets go of the directory. It unmounts nothing.
func (s *Store) Close() error { return s.lock.Close() }

// In implements activation.Stores.
func (s *Store) In(scope namespace.Scope) activation.Store { return scoped{s, scope} }

type scoped struct {
	s     *Store
	scope namespace.Scope
}

// Activate implements activation.Store.
func (n scoped) Activate(ctx context.Context, name string, mounts []mount.Mount, o activation.Options) (activation.Info, error) {
	if err := errors.Join(ctx.Err(), activation.Check(name, mounts, o)); err != nil {
		return activation.Info{}, err
	}
	plan := activation.NewPlan(mounts, o, "erofs", "loop")
	if plan.First < 0 {
		return activation.Info{}, fmt.Errorf("activation %s: nothing to do: %w", name, errdefs.ErrNotImplemented)
	}
	ctx, cancel := context.WithTimeout(ctx, makeTime)
	defer cancel()
	l, err := n.s.lookup(ctx, n.scope)
	if err != nil {
		return activation.Info{}, err
	}
	release, err := n.s.hold(ctx, n.scope.Name, name)
	if err != nil {
		return activation.Info{}, err
	}
	defer release()
	select {
	case n.s.makes <- struct{}{}:
		defer func() { <-n.s.makes }()
	case <-ctx.Done():
		return activation.Info{}, ctx.Err()
	}
	r := record{State: making, Labels: label.Clean(o.Labels), Created: time.Now().UTC()}
	r.place = n.s.newPlace(plan.First)
	if err := n.intend(ctx, name, r, l); err != nil {
		return activation.Info{}, err
	}
	j := &job{s: n.s, ns: n.scope.Name, dir: r.Dir}
	if r.System, err = j.run(ctx, mounts, plan, o.Temporary); err == nil {
		r.State, r.Active = active, j.made
		err = n.s.needs.Records.Update(ctx, func(tx *kv.Tx) error {
			return errors.Join(tx.PutJSON(recordKey(n.scope.Name, name), r), n.s.needs.Members.Join(tx, n.scope.Name, l, Resource(name)))
		})
	}
	if err != nil {
		return activation.Info{}, errors.Join(fmt.Errorf("activation %s: %w", name, err), n.giveUp(ctx, name, r.place))
	}
	return r.info(name), nil
}

// intend writes the record before anything is mounted.
func (n scoped) intend(ctx context.Context, name string, r record, l lease.Ref) error {
	exists := false
	err := n.s.needs.Records.Update(ctx, func(tx *kv.Tx) error {
		old, err := get(tx, n.scope.Name, name)
		if exists = err == nil; exists {
			// Written again, so that the collector knows that somebody was told.
			return errors.Join(tx.PutJSON(recordKey(n.scope.Name, name), old), n.s.needs.Members.Join(tx, n.scope.Name, l, Resource(name)))
		}
		if !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		return errors.Join(tx.PutJSON(recordKey(n.scope.Name, name), r), tx.PutJSON(lastKey, r.ID))
	})
	if err == nil && exists {
		return fmt.Errorf("activation %s: %w", name, errdefs.ErrAlreadyExists)
	}
	return err
}

// giveUpTime is how long the records may take to be told of what failed. What they
// are not told, the next start finds.
const giveUpTime = 30 * time.Second

// giveUp undoes what was made, now or, if something is in the way, later.
func (n scoped) giveUp(ctx context.Context, name string, p place) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveUpTime)
	defer cancel()
	if err := n.s.undo(p); err != nil {
		n.s.needs.Log.Warn("mounts of an activation that failed are still there", "name", name, "err", err)
		return n.s.needs.Records.Release(ctx, func(tx *kv.Tx) error { return n.s.abandon(tx, n.scope.Name, name, p) })
	}
	return n.s.needs.Records.Release(ctx, func(tx *kv.Tx) error { return drop(tx, n.scope.Name, name) })
}

// Deactivate implements activation.Store.
func (n scoped) Deactivate(ctx context.Context, name string) error {
	release, err := n.s.hold(ctx, n.scope.Name, name)
	if err != nil {
		return err
	}
	defer release()
	var r record
	// The intent: from here on the next start goes on, if this process does not.
	if err := n.s.needs.Records.Release(ctx, func(tx *kv.Tx) error {
		if r, err = get(tx, n.scope.Name, name); err != nil {
			return err
		}
		return tx.Put(endingKey(n.scope.Name, name), nil)
	}); err != nil {
		return err
	}
	if err := n.s.undo(r.place); err != nil {
		return fmt.Errorf("activation %s: %w", name, err)
	}
	return n.s.needs.Records.Release(ctx, func(tx *kv.Tx) error {
		return errors.Join(drop(tx, n.scope.Name, name), n.s.needs.Members.Leave(tx, n.scope.Name, n.scope.Lease, Resource(name)))
	})
}

// Info implements activation.Store.
func (n scoped) Info(_ context.Context, name string) (activation.Info, error) {
	var r record
	err := n.s.needs.Records.View(func(tx *kv.Tx) (err error) {
		r, err = get(tx, n.scope.Name, name)
		return err
	})
	if err == nil && (r.State == making || n.hidden(name)) {
		err = fmt.Errorf("activation %s: %w", name, errdefs.ErrNotFound)
	}
	if err != nil {
		return activation.Info{}, err
	}
	return r.info(name), nil
}

// pageMax is how many records of a list are read at once.
const pageMax = 100

// List implements activation.Store. Nothing is held while the caller works.
func (n scoped) List(ctx context.Context) iter.Seq2[activation.Info, error] {
	return func(yield func(activation.Info, error) bool) {
		for from := recordKey(n.scope.Name, ""); from != nil; {
			var page []activation.Info
			err := ctx.Err()
			if err == nil {
				page, from, err = n.page(from)
			}
			if err != nil {
				yield(activation.Info{}, err)
				return
			}
			for _, i := range page {
				if !yield(i, nil) {
					return
				}
			}
		}
	}
}

// page reads records from a key on, and returns where the next page begins.
func (n scoped) page(from []byte) (page []activation.Info, next []byte, err error) {
	err = n.s.needs.Records.View(func(tx *kv.Tx) error {
		for key := range tx.Scan(recordKey(n.scope.Name, ""), from) {
			if len(page) == pageMax {
				next = key
				return nil
			}
			name := kv.Parts(key)[2]
			r, err := get(tx, n.scope.Name, name)
			if err != nil {
				return err
			}
			if r.State != making && !n.hidden(name) {
				page = append(page, r.info(name))
			}
		}
		return nil
	})
	return page, next, err
}

func (n scoped) hidden(name string) bool {
	return n.s.needs.Hidden != nil && n.s.needs.Hidden(n.scope.Name, name)
}

func (s *Store) newPlace(count int) place {
	id := s.last.Add(1)
	return place{ID: id, Boot: s.boot, Dir: filepath.Join(s.dir, strconv.FormatUint(id, 10)), Count: count}
}

// lookup asks whether the scope's lease exists; without one it is the zero Ref.
func (s *Store) lookup(ctx context.Context, scope namespace.Scope) (lease.Ref, error) {
	if scope.Lease == "" {
		return lease.Ref{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, leaseTime)
	defer cancel()
	return s.needs.Leases.Lookup(ctx, scope)
}

// hold waits until nobody else makes or undoes an activation.
func (s *Store) hold(ctx context.Context, ns, name string) (release func(), err error) {
	key := string(recordKey(ns, name))
	for {
		s.mu.Lock()
		busy, ok := s.held[key]
		if !ok {
			break
		}
		s.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer s.mu.Unlock()
	done := make(chan struct{})
	s.held[key] = done
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.held, key)
		close(done)
	}, nil
}

// ring wakes Collect.
func (s *Store) ring() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
