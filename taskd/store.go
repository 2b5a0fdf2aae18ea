package taskd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/outbox"
	"github.com/gantryd/gantry/services/runner"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/services/task"
)

// schema is the version of the layout of keys; see doc.go.
const schema = 1

// A Store is the containers of a node and their tasks.
type Store struct {
	cfg    Config
	log    *slog.Logger
	db     *kv.DB
	outbox *outbox.Box
	events event.Publisher
	told   func(namespace string, e runner.Event) (event.Event, error)

	activations activation.Stores
	namespaces  namespace.Store
	gates       gate.Asker
	lobby       lobby

	disk disk
	run  runtime

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // of what looks after tasks

	waiting   context.Context // ends with Interrupt, or with ctx
	interrupt context.CancelFunc
	cleaning  chan struct{} // a place for each delete command that runs

	mu      sync.Mutex
	tasks   map[key]*live
	leaving map[key]chan struct{} // closed when a deleted task's shim is out of the way
	untold  map[key][]string      // bundles on their way out, in which events may be left
	kept    map[key]task.Exit     // of tasks whose deletion nobody has been told of
	trash   []string              // found by Open and not yet removed
}

// A key names a task.
type key struct{ namespace, id string }

// Needs are what a Store uses of others.
type Needs struct {
	Shims  task.ShimProtocol
	Events event.Publisher
	// Activations makes mounts that shims cannot; nil if nobody does.
	Activations activation.Stores
	// Namespaces has the labels of namespaces, of which one names gates; nil
	// if nobody does.
	Namespaces namespace.Store
	// Gates asks whether a container may start; nil if nobody does, and no
	// container that names gates starts.
	Gates gate.Asker
	// Told returns an event as it is when a shim of the namespace has told it
	// itself. Nil drops what shims leave untold.
	Told       func(namespace string, e runner.Event) (event.Event, error)
	Executable string   // our own: shims are looked for beside it
	Environ    []string // given to shims
	Log        *slog.Logger
}

// Open opens the records and finds the bundles of tasks that may still run.
// What has become of them is found out by Recover; until then their methods
// wait.
func Open(cfg Config, needs Needs) (*Store, error) {
	return open(cfg, needs, realDisk{}, newProcesses(cfg, needs))
}

func open(cfg Config, needs Needs, d disk, run runtime) (*Store, error) {
	if err := d.MkdirAll(cfg.Root, 0o700); err != nil {
		return nil, fmt.Errorf("taskd: %w", err)
	}
	if err := d.MkdirAll(cfg.State, parentMode); err != nil {
		return nil, fmt.Errorf("taskd: %w", err)
	}
	db, err := kv.Open(kv.Options{Dir: filepath.Join(cfg.Root, "db"), Owner: suite.Taskd, Schema: schema, Log: needs.Log})
	if err != nil {
		return nil, fmt.Errorf("taskd: %w", err)
	}
	box, err := outbox.Open(db, suite.Taskd, needs.Log)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("taskd: %w", err), db.Close())
	}
	s := &Store{
		cfg:    cfg,
		log:    needs.Log,
		db:     db,
		outbox: box,
		events: needs.Events,
		told:   needs.Told,

		activations: needs.Activations,
		namespaces:  needs.Namespaces,
		gates:       needs.Gates,

		disk:     d,
		run:      run,
		cleaning: make(chan struct{}, cleanMax),
		tasks:    make(map[key]*live),
		leaving:  make(map[key]chan struct{}),
		untold:   make(map[key][]string),
		kept:     make(map[key]task.Exit),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.waiting, s.interrupt = context.WithCancel(s.ctx)
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("taskd: %w", err), s.Close())
	}
	return s, nil
}

// Containers returns the container records.
func (s *Store) Containers() container.Stores { return containers{s} }

// Tasks returns the tasks.
func (s *Store) Tasks() task.Services { return services{s} }

// Lobby returns who waits for a gate.
func (s *Store) Lobby() gate.Lobby { return &s.lobby }

// Publish tells the events of containers, until ctx ends.
func (s *Store) Publish(ctx context.Context) error { return s.outbox.Publish(ctx, s.events) }

// Outbox says what the bus has not taken yet.
func (s *Store) Outbox() (suite.Outbox, error) {
	w, err := s.outbox.Waiting()
	return suite.Outbox(w), err
}

// Interrupt ends every Wait, and every Start that waits for a gate, with
// [errdefs.ErrUnavailable], so that a daemon that stops need not outlast its
// containers.
func (s *Store) Interrupt() { s.interrupt() }

// Close ends what looks after the tasks. They and their shims live on.
func (s *Store) Close() error {
	s.cancel()
	s.wg.Wait()
	s.run.close()
	return s.db.Close()
}

// load makes the map of tasks from the bundles and the records of deaths.
func (s *Store) load() error {
	boot, err := s.settleBoot()
	if err != nil {
		return err
	}
	if err := s.loadDead(boot); err != nil {
		return err
	}
	root := filepath.Join(s.cfg.State, bundlesName)
	namespaces, err := readDir(root)
	if err != nil {
		return err
	}
	for _, ns := range namespaces {
		ids, err := readDir(filepath.Join(root, ns))
		if err != nil {
			return err
		}
		for _, id := range ids {
			if err := s.loadBundle(ns, id); err != nil {
				return err
			}
		}
	}
	if n := len(s.tasks); n > 0 {
		s.log.Info("found tasks", "count", n)
	}
	return nil
}

func readDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// loadBundle takes one bundle in, or removes it if it never had a shim.
func (s *Store) loadBundle(ns, id string) error {
	dir := filepath.Join(s.cfg.State, bundlesName, ns, id)
	if strings.HasPrefix(id, ".") {
		s.trash = append(s.trash, dir)
		s.mayLeave(dir)
		return nil
	}
	b, err := s.bundle(ns, id)
	if err != nil {
		s.log.Warn("a directory among the bundles is not ours: left alone", "dir", dir)
		return nil
	}
	r, err := b.load()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s.setAside(b, "unborn")
	case err != nil:
		// Whether it runs is not known, so nothing is done to it.
		s.log.Error("the record of a task cannot be read: left alone", "namespace", ns, "task", id, "err", err)
		return nil
	}
	l := s.newLive(b, r)
	if r.State == creating {
		l.phase = beginning
	}
	if old := s.tasks[l.key()]; old != nil && old.rec.Instance == r.Instance {
		// Its death is recorded; only the bundle was left.
		return s.setAside(b, r.Instance)
	}
	s.tasks[l.key()] = l
	return nil
}

// setAside takes a bundle out of sight, for Recover to remove.
func (s *Store) setAside(b bundle, instance string) error {
	trash, err := b.remove(s.disk, instance)
	s.trash = append(s.trash, trash)
	s.mayLeave(trash)
	return err
}

// discard removes a bundle that has no shim any more. It is out of sight at
// once, and gone when what its shim has left to tell is told.
func (s *Store) discard(b bundle, instance string) error {
	trash, err := b.remove(s.disk, instance)
	if err != nil {
		return err
	}
	s.mayLeave(trash)
	s.wg.Go(func() { s.dump(trash) })
	return nil
}

// settleBoot removes the bundles of another boot and returns the name of this
// one. No process of another boot lives, however its pid and socket look.
func (s *Store) settleBoot() (string, error) {
	now, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	name := filepath.Join(s.cfg.State, "boot")
	was, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if bytes.Equal(was, now) {
		return string(now), nil
	}
	if len(was) > 0 { // nothing is removed for want of a name
		for _, dir := range []string{s.cfg.State, s.cfg.Root} {
			if err := s.disk.RemoveTree(filepath.Join(dir, bundlesName)); err != nil {
				return "", fmt.Errorf("bundles of another boot: %w", err)
			}
		}
	}
	return string(now), s.disk.Replace(name, now)
}

// find returns a task that its creator has been told of.
func (s *Store) find(ctx context.Context, ns, id string) (*live, error) {
	s.mu.Lock()
	l := s.tasks[key{ns, id}]
	s.mu.Unlock()
	if l != nil && l.visible() {
		return l, nil
	}
	// Which of the two is missing is worth a look.
	if _, err := (containerStore{s, ns}).Get(ctx, id); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("task %s not found: %w", id, errdefs.ErrNotFound)
}

// forget takes a task out of the map.
func (s *Store) forget(l *live) {
	s.mu.Lock()
	if s.tasks[l.key()] == l {
		delete(s.tasks, l.key())
	}
	s.mu.Unlock()
	l.end()
}
