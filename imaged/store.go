package imaged

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/image"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/outbox"
	"github.com/gantryd/gantry/services/suite"
)

const (
	// schema is the version of the keys and records in doc.go.
	schema = 1

	// recordMax is how long a record is at most, in bytes. An event repeats
	// the labels, and the bus takes messages up to a megabyte.
	recordMax = 256 << 10

	// callTime is how long another daemon may take for one answer.
	callTime = 10 * time.Second
)

// Needs are what a Store uses besides its directory.
type Needs struct {
	Members map[string]lease.Members    // who keeps members of leases, by daemon
	Holders map[string]namespace.Holder // who keeps records in namespaces, by daemon
	Events  event.Publisher
	Log     *slog.Logger
}

// A Store is the images, leases and namespaces of a node.
type Store struct {
	db      *kv.DB
	box     *outbox.Box
	events  event.Publisher
	log     *slog.Logger
	members map[string]lease.Members // with our own
	holders map[string]namespace.Holder
	now     func() time.Time

	// Each has an item when there may be more to do than its work has seen.
	ended   chan struct{}
	expires chan struct{}
}

var (
	_ image.Stores    = images{}
	_ lease.Stores    = leases{}
	_ lease.Registry  = (*Store)(nil)
	_ namespace.Store = namespaces{}
)

// Open opens the records in cfg's directory, which is made if it is missing.
func Open(cfg Config, needs Needs) (*Store, error) {
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(cfg.Root, 0o700); err != nil {
		return nil, err
	}
	db, err := kv.Open(kv.Options{
		Dir:    filepath.Join(cfg.Root, "db"),
		Owner:  suite.Imaged,
		Schema: schema,
		Log:    needs.Log,
	})
	if err != nil {
		return nil, err
	}
	box, err := outbox.Open(db, suite.Imaged, needs.Log)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s := &Store{
		db:      db,
		box:     box,
		events:  needs.Events,
		log:     needs.Log,
		members: map[string]lease.Members{},
		holders: needs.Holders,
		now:     time.Now,
		ended:   make(chan struct{}, 1),
		expires: make(chan struct{}, 1),
	}
	maps.Copy(s.members, needs.Members)
	s.members[suite.Imaged] = ownMembers{s}
	return s, nil
}

// Images returns the images.
func (s *Store) Images() image.Stores { return images{s} }

// Leases returns the leases.
func (s *Store) Leases() lease.Stores { return leases{s} }

// Namespaces returns the namespaces.
func (s *Store) Namespaces() namespace.Store { return namespaces{s} }

// Publish tells the bus of what happened here, until ctx ends.
func (s *Store) Publish(ctx context.Context) error { return s.box.Publish(ctx, s.events) }

// Outbox says what the bus has not taken yet.
func (s *Store) Outbox() (suite.Outbox, error) {
	w, err := s.box.Waiting()
	return suite.Outbox(w), err
}

// Close ends the store, after its works.
func (s *Store) Close() error { return s.db.Close() }

// put makes r the record of key.
func put(tx *kv.Tx, key []byte, r any) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("%v: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(b) > recordMax {
		return fmt.Errorf("record of %d bytes, at most %d: %w", len(b), recordMax, errdefs.ErrInvalidArgument)
	}
	return tx.Put(key, b)
}

// checkText is [errdefs.ErrInvalidArgument] for what JSON and protobuf cannot
// say.
func checkText(text string, more ...map[string]string) error {
	ok := utf8.ValidString(text)
	for _, m := range more {
		for k, v := range m {
			ok = ok && utf8.ValidString(k) && utf8.ValidString(v)
		}
	}
	if !ok {
		return fmt.Errorf("text is not UTF-8: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// ring wakes the work that waits on c.
func ring(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// wait waits until c rings, the time is over or ctx ends.
func wait(ctx context.Context, c chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-c:
	case <-t.C:
	case <-ctx.Done():
	}
}
