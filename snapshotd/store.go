package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/gated"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/keep"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/outbox"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
	"github.com/gantryd/gantry/snapshotd/mounter"
)

// Overlayfs is the snapshotter that is used where none is named.
const Overlayfs = "overlayfs"

// schema is the version of the layout of keys in doc.go.
const schema = 1

// leaseTime is how long the registry of leases may take for an answer.
const leaseTime = 10 * time.Second

// Needs are the contracts of other daemons that this one uses.
type Needs struct {
	Leases  lease.Registry
	Events  event.Publisher
	Content content.Stores             // where layers are
	Proxies map[string]snapshot.Stores // external snapshotters that the config names
	Log     *slog.Logger
}

// A Store keeps snapshots and extracts layers into them.
type Store struct {
	cfg    Config
	needs  Needs
	log    *slog.Logger
	disk   driver.Disk
	kv     *kv.DB
	keeper *keep.Keeper // of kv
	db     gated.DB     // kv, behind the gate
	gate   *gc.Gate
	box    *outbox.Box

	mounter   *mounter.Store
	drivers   map[string]driver.Driver // by snapshotter
	externals map[string]*external     // those that are other processes
	skipped   map[string]error         // why there is none

	spent   spent
	last    atomic.Uint64 // id handed out
	wake    chan struct{} // has an item when there is something to collect
	applies chan struct{} // has an item for each layer being extracted
	diffs   chan struct{} // has an item for each layer being made, which may take hours
	turn    chan struct{} // see trashTurn

	flights flights // what is being unpacked
	crowd   crowd   // how much that is

	// mu guards the fields below it. held are the snapshots whose files are
	// being changed or removed; the channel is closed when the holder lets go.
	mu     sync.Mutex
	held   map[uint64]chan struct{}
	layers map[uint64][]extracted // of active snapshots
	making map[uint64]bool        // have a tree and no record yet
}

var (
	_ snapshot.Stores  = (*Store)(nil)
	_ lease.Members    = (*Store)(nil)
	_ namespace.Holder = (*Store)(nil)
)

// Open opens or makes the store, and reconciles its records with its
// directories. A root that is another daemon's is
// [errdefs.ErrFailedPrecondition]. A snapshotter whose kernel, file system or tool
// is not there is no error: it is missing then, and Plugins say why.
func Open(cfg Config, needs Needs) (*Store, error) {
	return open(cfg, needs, driver.TogetherOn(driver.Files{}), kernel.New())
}

func open(cfg Config, needs Needs, d driver.Disk, k kernel.Kernel) (*Store, error) {
	return openAt(cfg, needs, d, k, gc.Now)
}

// openAt is open with a clock for the collector's cycles.
func openAt(cfg Config, needs Needs, d driver.Disk, k kernel.Kernel, now func() gc.Instant) (*Store, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("config: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	// The database is first: it refuses a directory that is not ours.
	keeper, err := keep.Open(keeping(cfg, d, needs.Log))
	if err != nil {
		return nil, err
	}
	db := keeper.DB()
	gate := gc.NewGate(now)
	s := &Store{
		cfg: cfg, needs: needs, log: needs.Log, disk: d, kv: db, keeper: keeper, gate: gate, db: behind(db, gate),
		drivers:   make(map[string]driver.Driver),
		externals: make(map[string]*external),
		skipped:   make(map[string]error),
		wake:      make(chan struct{}, 1),
		applies:   make(chan struct{}, cfg.Applies),
		diffs:     make(chan struct{}, cfg.Applies),
		turn:      make(chan struct{}, 1),
		held:      make(map[uint64]chan struct{}),
		layers:    make(map[uint64][]extracted),
		making:    make(map[uint64]bool),
	}
	if err := s.prepare(driver.Env{Disk: d, Kernel: k, Log: needs.Log, FreeMin: cfg.freeMin()}); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

func (s *Store) prepare(env driver.Env) error {
	if err := driver.OwnDir(s.cfg.Root); err != nil {
		return err
	}
	s.load(env)
	err := s.connect(env.Kernel)
	if err != nil {
		return err
	}
	if s.box, err = outbox.Open(s.kv, suite.Snapshotd, s.log); err != nil {
		return err
	}
	if err := s.db.Resume(); err != nil {
		return err
	}
	if s.keeper.Incomplete() {
		if _, err := s.rebuild(context.Background()); err != nil {
			return err
		}
	}
	if err := errors.Join(s.completeMembers(context.Background()), s.reconcile(), s.recoverBegun(context.Background())); err != nil {
		return err
	}
	return s.openMounter()
}

// Close waits for calls under way. It removes nothing, and unmounts nothing.
func (s *Store) Close() error { return errors.Join(s.mounter.Close(), s.kv.Close()) }

// Publish hands events to the bus until ctx ends.
func (s *Store) Publish(ctx context.Context) error { return s.box.Publish(ctx, s.needs.Events) }

// Outbox says what the bus has not taken yet.
func (s *Store) Outbox() (suite.Outbox, error) {
	w, err := s.box.Waiting()
	return suite.Outbox(w), err
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

// hold waits until nobody else changes the files of a snapshot.
func (s *Store) hold(ctx context.Context, id uint64) (release func(), err error) {
	for {
		release, busy := s.tryHold(id)
		if release != nil {
			return release, nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// tryHold returns what lets go, or else what tells that the holder did.
func (s *Store) tryHold(id uint64) (release func(), busy <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if busy, ok := s.held[id]; ok {
		return nil, busy
	}
	done := make(chan struct{})
	s.held[id] = done
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.held, id)
		close(done)
	}, nil
}

// ring wakes the collectors.
func (s *Store) ring() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
	for _, e := range s.externals {
		e.ring()
	}
}
