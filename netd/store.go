package netd

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/task"
)

// Needs are what a Store asks of others.
type Needs struct {
	Containers container.Stores // to write labels
	Tasks      task.Services    // to ask which tasks there are
	Log        *slog.Logger
}

// A Store connects containers to networks.
type Store struct {
	cfg     Config
	needs   Needs
	log     *slog.Logger
	disk    disk
	kernel  kernel
	plugins plugins
	boot    string        // which one this is
	prefix  string        // of the ids of attachments that are ours
	slots   chan struct{} // taken by who runs plugins
	turns   turns
	lock    *os.File // of the root directory

	// mu guards the fields below it. It is held across nothing.
	mu      sync.Mutex
	records map[key]*record // never changed, only replaced
	due     map[key]time.Time
	tries   map[key]int
	swept   time.Time
	wake    chan struct{} // something became due
}

var _ gate.Gate = (*Store)(nil)

// pluginsMax is how many attachments are worked on at once. Each is several
// processes after each other.
const pluginsMax = 8

// Open reads what there is. Nothing is done about it before [Store.Reconcile].
// A root directory that another netd has is [errdefs.ErrFailedPrecondition].
func Open(cfg Config, needs Needs) (*Store, error) {
	if err := (osDisk{}).Mkdir(cfg.Root); err != nil {
		return nil, fmt.Errorf("netd: %w", err)
	}
	// One that was killed is not gone while a child that it was just starting
	// has its descriptors.
	ctx, cancel := context.WithTimeout(context.Background(), openTime)
	defer cancel()
	lock, err := lockDir(ctx, cfg.Root)
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("netd: %s: in use by another process: %w", cfg.Root, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("netd: %w", err)
	}
	s, err := open(cfg, needs, osDisk{}, linux{}, cni{dirs: cfg.Plugins})
	if err != nil {
		lock.Close()
		return nil, err
	}
	s.lock = lock
	return s, nil
}

// openTime is how long Open waits for another process to let go.
const openTime = 2 * time.Second

// Close lets go of the root directory. What is connected stays so.
func (s *Store) Close() error { return s.lock.Close() }

func open(cfg Config, needs Needs, d disk, k kernel, p plugins) (*Store, error) {
	if needs.Log == nil {
		needs.Log = slog.New(slog.DiscardHandler)
	}
	// Another suite on this node may use the same network: what is ours must
	// be told from what is theirs, also when our records are lost.
	whose := sha256.Sum256([]byte(cfg.Root))
	s := &Store{
		cfg: cfg, needs: needs, log: needs.Log, disk: d, kernel: k, plugins: p,
		prefix:  "gantry-" + hex.EncodeToString(whose[:4]) + "-",
		slots:   make(chan struct{}, pluginsMax),
		records: make(map[key]*record),
		due:     make(map[key]time.Time),
		tries:   make(map[key]int),
		wake:    make(chan struct{}, 1),
	}
	var err error
	if s.boot, err = k.Boot(); err != nil {
		return nil, fmt.Errorf("netd: %w", err)
	}
	if err := errors.Join(s.load(), s.writeResolvers()); err != nil {
		return nil, fmt.Errorf("netd: %w", err)
	}
	return s, nil
}

func (s *Store) newID() string { return s.prefix + strings.ToLower(rand.Text()[:16]) }

// pin is the name by which the namespace of an attachment is kept.
func (s *Store) pin(id string) string { return filepath.Join(s.cfg.State, ".netns", id) }

func (s *Store) get(k key) *record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records[k]
}

// keep has a record stand for its container. What it says is taken, from its
// ports to its namespace, until it is dropped.
func (s *Store) keep(r *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[r.key()] = r
}

func (s *Store) drop(r *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.records, r.key())
}

// claim is keep for a new record, which may not want what another has: then it
// says whose that is.
func (s *Store) claim(r *record) (holder key, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.records {
		if o.Netns == r.Netns && o.Boot == r.Boot {
			return o.key(), fmt.Errorf("container %s has the network namespace of container %s, which is connected already: %w", r.key(), o.key(), errdefs.ErrFailedPrecondition)
		}
		for _, p := range r.Ports {
			if i := slices.IndexFunc(o.Ports, p.Overlaps); i >= 0 {
				return o.key(), fmt.Errorf("port %s is published already, as %s of container %s: %w", p, o.Ports[i], o.key(), errdefs.ErrAlreadyExists)
			}
		}
	}
	s.records[r.key()] = r
	return key{}, nil
}
