package contentd

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"iter"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/gated"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/keep"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/outbox"
	"github.com/gantryd/gantry/services/suite"
)

// Needs is what contentd uses of the others.
type Needs struct {
	Leases     lease.Registry
	Namespaces content.Namespaces // nil where the policy is [content.Shared]
	Events     event.Publisher
	Log        *slog.Logger
}

// A Store is the content of every namespace.
type Store struct {
	cfg    Config
	needs  Needs
	log    *slog.Logger
	kv     *kv.DB
	keeper *keep.Keeper // of kv
	db     gated.DB     // kv, but for tests
	gate   *gc.Gate
	disk   disk
	names  map[string]*names // of the directories that blobs and ingests are in
	box    *outbox.Box
	now    func() time.Time

	// digests are locked while a file in blobs/ comes or goes.
	digests [256]sync.Mutex

	// fetches are the writers that others wait for.
	fetches content.Fetches

	// name is what Name returns.
	name string

	// lendless says why no file is lent to be written, if none is.
	lendless error

	// sealTime is how long a file is waited for that is still open to write.
	sealTime time.Duration

	// bell has an item when there is something to collect.
	bell chan struct{}

	unnoted sync.Once // it was said that files take no notes

	// mu guards the fields below it.
	mu      sync.Mutex
	writers map[held]*writer
	pins    map[digest.Digest]int  // by writers that borrow
	lost    map[digest.Digest]bool // have a record and no whole file
	left    []leftover             // of what Sweep removed
}

// held is a ref that has a writer.
type held struct{ namespace, ref string }

var (
	_ content.Stores   = (*Store)(nil)
	_ lease.Members    = (*Store)(nil)
	_ namespace.Holder = (*Store)(nil)
	_ content.Store    = (*scoped)(nil)
	_ content.Reader   = (*reader)(nil)
	_ content.Writer   = (*writer)(nil)
)

// Open opens or makes the store at cfg.Root and sets right what a crash left
// there. A directory of another daemon's, or of a newer contentd's, is
// [errdefs.ErrFailedPrecondition].
func Open(cfg Config, needs Needs) (*Store, error) {
	return open(cfg, needs, osDisk{}, func(db *kv.DB) database { return db })
}

func open(cfg Config, needs Needs, d disk, records func(*kv.DB) database) (*Store, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if needs.Log == nil {
		needs.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		cfg:      cfg,
		needs:    needs,
		log:      needs.Log,
		gate:     gc.NewGate(gc.Now),
		disk:     d,
		names:    make(map[string]*names),
		now:      func() time.Time { return time.Now().UTC() },
		sealTime: sealTime,
		bell:     make(chan struct{}, 1),
		writers:  make(map[held]*writer),
		pins:     make(map[digest.Digest]int),
		lost:     make(map[digest.Digest]bool),
	}
	for _, dir := range s.dirs() {
		s.names[dir] = newNames(d, dir)
	}
	// The database says whose directory it is, before anything in it changes.
	if err := s.openRecords(); err != nil {
		return nil, err
	}
	db := s.keeper.DB()
	var err error
	s.kv, s.db = db, behind(records(db), s.gate)
	if s.box, err = outbox.Open(db, suite.Contentd, s.log); err == nil {
		err = s.db.Resume()
	}
	if err == nil {
		err = s.reconcile()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("content at %s: %w", cfg.Root, kind(err)), db.Close())
	}
	if s.name, err = nameOf(cfg.Root); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if s.lendless = canSeal(s.ingests()); s.lendless != nil {
		s.log.Info("files are not lent to be written: the file system does not say who has them", "err", s.lendless)
	}
	return s, nil
}

// Close ends the store. Its writers and readers are to be closed before.
func (s *Store) Close() error { return s.kv.Close() }

// Publish tells the bus what happened, until ctx ends. It is a work of the
// daemon's.
func (s *Store) Publish(ctx context.Context) error { return s.box.Publish(ctx, s.needs.Events) }

// Outbox says what the bus has not taken yet.
func (s *Store) Outbox() (suite.Outbox, error) {
	w, err := s.box.Waiting()
	return suite.Outbox(w), err
}

// In implements [content.Stores].
func (s *Store) In(scope namespace.Scope) content.Store { return &scoped{s, scope} }

// A scoped is the store as one scope sees it.
type scoped struct {
	*Store
	scope namespace.Scope
}

// Info implements [content.Blobs].
func (c *scoped) Info(_ context.Context, d digest.Digest) (content.Info, error) {
	if err := content.CheckDigest(d); err != nil {
		return content.Info{}, err
	}
	var b blob
	err := c.kv.GetJSON(blobKey(c.scope.Name, d), &b)
	if errors.Is(err, errdefs.ErrNotFound) || err == nil && c.isLost(d) {
		return content.Info{}, missing(d)
	}
	if err != nil {
		return content.Info{}, err
	}
	return b.info(d), nil
}

// Update implements [content.Blobs].
func (c *scoped) Update(ctx context.Context, info content.Info, fields ...string) (content.Info, error) {
	if err := content.CheckDigest(info.Digest); err != nil {
		return content.Info{}, err
	}
	var b blob
	err := c.db.Update(ctx, func(tx *kv.Tx) (err error) {
		if b, err = c.blob(tx, info.Digest); err != nil {
			return err
		}
		if b.Labels, err = label.Update(b.Labels, info.Labels, fields); err != nil {
			return err
		}
		b.Updated = c.now()
		return tx.PutJSON(blobKey(c.scope.Name, info.Digest), b)
	})
	if err != nil {
		return content.Info{}, err
	}
	c.annotate(c.path(info.Digest), c.scope.Name, b.Created, b.Labels)
	return b.info(info.Digest), nil
}

// listBatch is how many infos List reads at once, and listSize how many bytes of
// records but for the last one's: it holds no transaction while its caller is at
// work.
const (
	listBatch = 400
	listSize  = 64 << 10
)

// List implements [content.Blobs].
func (c *scoped) List(ctx context.Context, filters ...string) iter.Seq2[content.Info, error] {
	return func(yield func(content.Info, error) bool) {
		f, err := filter.Parse(filters...)
		for from, more := []byte(nil), true; more; {
			var batch []content.Info
			if err == nil {
				err = ctx.Err()
			}
			if err == nil {
				batch, from, err = c.list(f, from)
			}
			if err != nil {
				yield(content.Info{}, err)
				return
			}
			for _, info := range batch {
				if !yield(info, nil) {
					return
				}
			}
			more = from != nil
		}
	}
}

// list returns the infos that match among the next listBatch, and the key to go
// on from, if there is more.
func (c *scoped) list(f filter.Filter, from []byte) (batch []content.Info, next []byte, err error) {
	err = c.db.View(func(tx *kv.Tx) error {
		seen, size := 0, 0
		all := blobKey(c.scope.Name, "")
		for key, value := range tx.Scan(all, from) {
			if seen == listBatch || size >= listSize {
				next = key
				break
			}
			seen, size = seen+1, size+len(value)
			d := digest.Digest(key[len(all):])
			if c.isLost(d) {
				continue
			}
			b, err := readBlob(key, value)
			if err != nil {
				return err
			}
			if info := b.info(d); f.Match(info.Field) {
				batch = append(batch, info)
			}
		}
		return nil
	})
	return batch, next, err
}

// Delete implements [content.Blobs].
func (c *scoped) Delete(ctx context.Context, d digest.Digest) error {
	if err := content.CheckDigest(d); err != nil {
		return err
	}
	ns := c.scope.Name
	err := c.db.Release(ctx, func(tx *kv.Tx) error {
		// A blob whose bytes are lost, and one whose record is damaged, is
		// deleted all the same.
		var b blob
		err := tx.GetJSON(blobKey(ns, d), &b)
		if errors.Is(err, errdefs.ErrNotFound) {
			return missing(d)
		}
		if err != nil && !errors.Is(err, errdefs.ErrDataLoss) {
			return err
		}
		if err := errors.Join(tx.Delete(blobKey(ns, d)), tx.Delete(haveKey(d, ns))); err != nil {
			return err
		}
		if c.scope.Lease != "" {
			if err := leave(tx, ns, contentOf(d), c.scope.Lease); err != nil {
				return err
			}
		}
		if err := c.trash(tx, d, b.Size); err != nil {
			return err
		}
		return c.box.Add(ctx, tx, event.New(ns, c.now(), event.ContentDelete{Digest: d.String()}))
	})
	if err == nil {
		c.unannotate(d, ns)
	}
	return err
}

func missing(d digest.Digest) error { return fmt.Errorf("content %s: %w", d, errdefs.ErrNotFound) }

// trash notes that the bytes can be collected, unless somebody has them.
func (s *Store) trash(tx *kv.Tx, d digest.Digest, size int64) error {
	if had(tx, d) {
		return nil
	}
	tx.After(s.ring)
	return tx.PutJSON(trashKey(d), trash{Since: s.now(), Size: size})
}

// blob reads the record of a blob whose bytes are there.
func (c *scoped) blob(tx *kv.Tx, d digest.Digest) (blob, error) {
	var b blob
	err := tx.GetJSON(blobKey(c.scope.Name, d), &b)
	if errors.Is(err, errdefs.ErrNotFound) || err == nil && (c.isLost(d) || c.gate.Hidden(node(c.scope.Name, lease.TypeContent, d.String()))) {
		return blob{}, missing(d)
	}
	return b, err
}

// path is where the bytes of a digest are that was checked.
func (s *Store) path(d digest.Digest) string {
	return filepath.Join(s.blobs(d.Algorithm()), d.Encoded())
}

func (s *Store) blobs(a digest.Algorithm) string {
	return filepath.Join(s.cfg.Root, "blobs", a.String())
}

func (s *Store) ingests() string { return filepath.Join(s.cfg.Root, "ingest") }

func (s *Store) ingestPath(name string) string { return filepath.Join(s.ingests(), name) }

// dirs are those with one file for each blob or ingest.
func (s *Store) dirs() []string {
	dirs := []string{s.ingests()}
	for _, a := range content.Algorithms() {
		dirs = append(dirs, s.blobs(a))
	}
	return dirs
}

// lock locks a digest.
func (s *Store) lock(d digest.Digest) (unlock func()) {
	h := fnv.New32a()
	io.WriteString(h, string(d)) // never fails
	mu := &s.digests[h.Sum32()%uint32(len(s.digests))]
	mu.Lock()
	return mu.Unlock
}

// ring wakes Collect.
func (s *Store) ring() {
	select {
	case s.bell <- struct{}{}:
	default:
	}
}
