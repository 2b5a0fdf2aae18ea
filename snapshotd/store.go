package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/outbox"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/suite"
)

// Overlayfs is the snapshotter that there is.
const Overlayfs = "overlayfs"

// schema is the version of the layout of keys in doc.go.
const schema = 1

// leaseTime is how long the registry of leases may take for an answer.
const leaseTime = 10 * time.Second

// Needs are the contracts of other daemons that this one uses.
type Needs struct {
	Leases  lease.Registry
	Events  event.Publisher
	Content content.Stores // where layers are
	Log     *slog.Logger
}

// A Store keeps snapshots and extracts layers into them.
type Store struct {
	cfg    Config
	needs  Needs
	log    *slog.Logger
	disk   disk
	kernel kernel
	db     *kv.DB
	box    *outbox.Box

	dir     string   // of snapshots
	options []string // of overlays
	skipped error    // why there is no overlayfs

	last    atomic.Uint64 // id handed out
	wake    chan struct{} // has an item when there is something to collect
	applies chan struct{} // has an item for each layer being extracted

	// mu guards held, the snapshots whose files are being changed or removed.
	// The channel is closed when the holder lets go.
	mu   sync.Mutex
	held map[uint64]chan struct{}
}

var (
	_ snapshot.Stores  = (*Store)(nil)
	_ lease.Members    = (*Store)(nil)
	_ namespace.Holder = (*Store)(nil)
)

// Open opens or makes the store, and reconciles its records with its
// directories. A root that is another daemon's is
// [errdefs.ErrFailedPrecondition]. A kernel or file system without overlayfs is
// no error: the snapshotter is missing then, and Plugins say why.
func Open(cfg Config, needs Needs) (*Store, error) {
	return open(cfg, needs, files{}, newKernel())
}

func open(cfg Config, needs Needs, d disk, k kernel) (*Store, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("config: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	// The database is first: it refuses a directory that is not ours.
	db, err := kv.Open(kv.Options{Dir: filepath.Join(cfg.Root, "db"), Owner: suite.Snapshotd, Schema: schema, Log: needs.Log})
	if err != nil {
		return nil, err
	}
	s := &Store{
		cfg: cfg, needs: needs, log: needs.Log, disk: d, kernel: k, db: db,
		dir:     filepath.Join(cfg.Root, Overlayfs, "snapshots"),
		options: overlayOptions(),
		wake:    make(chan struct{}, 1),
		applies: make(chan struct{}, cfg.Applies),
		held:    make(map[uint64]chan struct{}),
	}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

func (s *Store) prepare() error {
	for _, dir := range []string{s.cfg.Root, filepath.Dir(s.dir), s.dir} {
		if err := ownDir(dir); err != nil {
			return err
		}
	}
	spread(s.dir)
	if s.skipped = probe(s.kernel, s.disk, filepath.Dir(s.dir), s.options); s.skipped != nil {
		s.log.Warn("there is no overlayfs here", "dir", s.dir, "err", s.skipped)
	}
	var err error
	if s.box, err = outbox.Open(s.db, suite.Snapshotd, s.log); err != nil {
		return err
	}
	return s.reconcile()
}

// Close waits for calls under way. It removes nothing.
func (s *Store) Close() error { return s.db.Close() }

// In implements snapshot.Stores.
func (s *Store) In(scope namespace.Scope, snapshotter string) (snapshot.Store, error) {
	if snapshotter != Overlayfs || s.skipped != nil {
		return nil, fmt.Errorf("snapshotter not loaded: %s: %w", snapshotter, errdefs.ErrInvalidArgument)
	}
	return snapshots{s: s, scope: scope, shelf: shelf{snapshotter, scope.Name}}, nil
}

// Layers returns the service that extracts layers into snapshots.
func (s *Store) Layers() diff.Services { return layers{s} }

// Traits are what the snapshotter does beyond the contract.
func (s *Store) Traits() snapshot.Traits { return snapshot.Traits{Rebase: true} }

// Plugins describe the daemon in containerd's terms.
func (s *Store) Plugins() []suite.Plugin {
	// Clients ask the snapshotter which platforms may be unpacked.
	here := []string{platforms.Format(platforms.DefaultSpec())}
	sn := suite.Plugin{
		Type:         "io.containerd.snapshotter.v1",
		ID:           Overlayfs,
		Platforms:    here,
		Exports:      map[string]string{"root": filepath.Dir(s.dir)},
		Capabilities: []string{"rebase"},
	}
	if s.skipped != nil {
		sn.Skip, sn.Capabilities = s.skipped.Error(), nil
	}
	return []suite.Plugin{
		sn,
		{Type: "io.containerd.differ.v1", ID: "walking", Platforms: here},
		{Type: "io.containerd.service.v1", ID: "snapshots-service"},
		{Type: "io.containerd.service.v1", ID: "diff-service"},
		{Type: "io.containerd.grpc.v1", ID: "snapshots"},
		{Type: "io.containerd.grpc.v1", ID: "diff"},
	}
}

// Publish hands events to the bus until ctx ends.
func (s *Store) Publish(ctx context.Context) error { return s.box.Publish(ctx, s.needs.Events) }

func (s *Store) path(id uint64) string { return filepath.Join(s.dir, strconv.FormatUint(id, 10)) }
func (s *Store) fs(id uint64) string   { return filepath.Join(s.path(id), "fs") }
func (s *Store) work(id uint64) string { return filepath.Join(s.path(id), "work") }

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

// ring wakes the collector.
func (s *Store) ring() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
