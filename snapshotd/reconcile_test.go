package snapshotd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
)

// whose returns the owner of a directory, or nil.
func whose(t *testing.T, s *Store, id uint64) *owner {
	t.Helper()
	var o owner
	err := s.db.View(func(tx *kv.Tx) error { return tx.GetJSON(dirKey(id), &o) })
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return &o
}

func TestOpenMendsWhatDiffers(t *testing.T) {
	needRoot(t)
	cfg := testConfig(t)
	s, err := Open(cfg, quietNeeds(t))
	if err != nil {
		t.Fatal(err)
	}
	sn := in(t, s, one)
	prepare(t, sn, "lost-key", "")
	commitTo(t, sn, "lost", "lost-key", "")
	prepare(t, sn, "base-key", "")
	commitTo(t, sn, "base", "base-key", "")
	if err := os.Lchown(s.fs(2), 11, 22); err != nil {
		t.Fatal(err)
	}
	prepare(t, sn, "active", "base")
	prepare(t, sn, "orphan", "lost")
	if _, err := sn.View(t.Context(), "view", "base", snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.RemoveAll(s.path(1)), os.RemoveAll(s.path(3)), os.RemoveAll(s.path(4)),
		os.MkdirAll(filepath.Join(s.dir(), "4711", "fs", "x"), 0o755),
		os.MkdirAll(filepath.Join(s.dir(), "lost+found"), 0o755),
		os.MkdirAll(filepath.Join(s.dir(), "007"), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	needs := quietNeeds(t)
	needs.Log = slog.New(slog.NewTextHandler(&log, nil))
	s = openTest(t, cfg, needs)
	for _, want := range []string{
		"the files of a snapshot are gone", "snapshot=lost", "made the directory of a snapshot anew", "snapshot=active",
		"cannot make the directory of a snapshot anew", "snapshot=orphan",
		"found directories without a snapshot", "count=1", "something else is among the snapshots", "name=lost+found", "name=007",
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log.String())
		}
	}
	sn = in(t, s, one)
	if _, err := sn.Stat(t.Context(), "lost"); err != nil {
		t.Errorf("the damaged one: %v, want it to be left alone", err)
	}
	fi, err := os.Stat(s.fs(3))
	if err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("the active one's directory is %v, %v", fi, err)
	}
	if got := fmt.Sprint(ownerOf(t, s.fs(3))); got != "11:22" {
		t.Errorf("it belongs to %s, want its parent's 11:22", got)
	}
	if err := s.empty(t.Context()); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(s.dir())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff([]string{"007", "2", "3", "4", "lost+found"}, names); diff != "" {
		t.Errorf("directories (-want +got):\n%s", diff)
	}
	// No id is used twice, not even that of a stray directory.
	if m := prepare(t, sn, "next", ""); m[0].Source != s.fs(4712) {
		t.Errorf("the next directory is %s, want %s", m[0].Source, s.fs(4712))
	}
}

func TestDirectoriesAreTightened(t *testing.T) {
	needRoot(t)
	cfg := testConfig(t)
	for _, dir := range []string{"", "db", Overlayfs, filepath.Join(Overlayfs, "snapshots")} {
		dir = filepath.Join(cfg.Root, dir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := openTest(t, cfg, testNeeds(t))
	for _, dir := range []string{cfg.Root, filepath.Join(cfg.Root, "db"), filepath.Dir(s.dir()), s.dir()} {
		if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%s is %v, %v, want mode 0700", dir, fi.Mode(), err)
		}
	}
	prepare(t, in(t, s, one), "key", "")
	if fi, err := os.Stat(s.path(1)); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("a snapshot's directory is %v, %v, want mode 0700", fi.Mode(), err)
	}
}

func TestForeignRootIsRefused(t *testing.T) {
	cfg := testConfig(t)
	db, err := kv.Open(kv.Options{Dir: filepath.Join(cfg.Root, "db"), Owner: "contentd", Schema: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg, testNeeds(t)); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Open: %v, want %v", err, errdefs.ErrFailedPrecondition)
	}
	if _, err := os.Stat(filepath.Join(cfg.Root, Overlayfs)); err == nil {
		t.Error("something was made in another daemon's root")
	}
	for _, bad := range []Config{{}, {Root: "relative"}, {Root: "/a,b"}, {Root: "/a:b"}, {Root: "/a/../b"}, {Root: "/" + strings.Repeat("x", 200)}} {
		if _, err := Open(bad, testNeeds(t)); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Open(%+v): %v, want %v", bad, err, errdefs.ErrInvalidArgument)
		}
	}
}

// noKernel has no overlayfs.
type noKernel struct{}

func (noKernel) Overlay(kernel.Overlay) (*os.File, error) { return nil, errors.New("no such device") }

func TestWithoutOverlayfsTheDaemonRuns(t *testing.T) {
	s, err := open(testConfig(t), quietNeeds(t), driver.Files{}, noKernel{})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	defer s.Close()
	if _, err := s.In(one, Overlayfs); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("In: %v, want %v", err, errdefs.ErrInvalidArgument)
	}
	if p := pluginOf(t, s, Overlayfs); !strings.Contains(p.Skip, "no such device") {
		t.Errorf("the plugin is %+v, want to say why it is skipped", p)
	}
	if _, err := s.In(one, "native"); err != nil {
		t.Errorf("In: %v, want the others to be there", err)
	}
	if p := pluginOf(t, openTest(t, testConfig(t), testNeeds(t)), Overlayfs); p.Skip != "" || !slices.Contains(p.Capabilities, "rebase") {
		t.Errorf("the plugin is %+v, want it to be there", p)
	}
}

func pluginOf(t *testing.T, s *Store, snapshotter string) suite.Plugin {
	t.Helper()
	all := s.Plugins()
	i := slices.IndexFunc(all, func(p suite.Plugin) bool { return p.Type == "io.containerd.snapshotter.v1" && p.ID == snapshotter })
	if i < 0 {
		t.Fatalf("no plugin %s", snapshotter)
	}
	return all[i]
}

// TestBtrfsIsWhereThereIsOne skips the snapshotter elsewhere, and says why.
func TestBtrfsIsWhereThereIsOne(t *testing.T) {
	needRoot(t)
	cfg := testConfig(t)
	inMemory(t, filepath.Dir(cfg.Root))
	s := openTest(t, cfg, quietNeeds(t))
	if _, err := s.In(one, "btrfs"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("In: %v, want %v", err, errdefs.ErrInvalidArgument)
	}
	if p := pluginOf(t, s, "btrfs"); !strings.Contains(p.Skip, "is not on a btrfs file system") {
		t.Errorf("the plugin is %+v, want to say why it is skipped", p)
	}
	if p := pluginOf(t, openTest(t, configOf(t, "btrfs"), testNeeds(t)), "btrfs"); p.Skip != "" {
		t.Errorf("the plugin is %+v, want it to be there", p)
	}
}

// stubborn does not remove some directories.
type stubborn struct {
	driver.Disk
	mu    sync.Mutex
	keeps map[string]bool
}

func (d *stubborn) RemoveTree(ctx context.Context, path string) error {
	d.mu.Lock()
	keeps := d.keeps[filepath.Base(path)]
	d.mu.Unlock()
	if keeps {
		return errors.New("device or resource busy")
	}
	return d.Disk.RemoveTree(ctx, path)
}

func TestOneThatStaysDoesNotKeepTheOthers(t *testing.T) {
	needRoot(t)
	d := &stubborn{Disk: driver.Files{}, keeps: map[string]bool{"2": true}}
	s, err := open(testConfig(t), quietNeeds(t), d, kernel.New())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sn := in(t, s, one)
	for i := range 4 {
		key := fmt.Sprint("key", i)
		prepare(t, sn, key, "")
		if err := sn.Remove(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Collect(ctx) }()
	waitFor(t, "the others to be removed", func() bool { return len(dirs(t, s)) == 1 })
	if got := dirs(t, s); !slices.Equal(got, []string{"2"}) {
		t.Errorf("left on disk: %v, want 2", got)
	}
	d.mu.Lock()
	clear(d.keeps)
	d.mu.Unlock()
	waitFor(t, "the one that stayed to be tried again", func() bool { return len(dirs(t, s)) == 0 })
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Collect: %v", err)
	}
	if err := sn.Cleanup(t.Context()); err != nil {
		t.Errorf("Cleanup: %v", err)
	}
}

func dirs(t *testing.T, s *Store) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(s.dir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for tick := time.NewTicker(10 * time.Millisecond); !done(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// heard is a bus that remembers.
type heard struct {
	mu     sync.Mutex
	events []event.Event
}

func (h *heard) Publish(_ context.Context, e event.Event) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
	return nil
}

func (h *heard) all() (all []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		all = append(all, e.Namespace+" "+e.Topic+" "+string(e.JSON))
	}
	return all
}

func TestEventsAreOfWhatBecameTrue(t *testing.T) {
	bus := &heard{}
	needs := testNeeds(t)
	needs.Events = bus
	s := openTest(t, testConfig(t), needs)
	sn := in(t, s, one)
	prepare(t, sn, "key", "")
	commitTo(t, sn, "name", "key", "")
	if _, err := sn.View(t.Context(), "view", "name", snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	prepare(t, sn, "child", "name")
	for _, err := range []error{
		sn.Remove(t.Context(), "name"), sn.Remove(t.Context(), "none"), sn.Commit(t.Context(), "name", "child", snapshot.Options{}),
	} {
		if err == nil {
			t.Error("done, want refused")
		}
	}
	if _, err := sn.Prepare(t.Context(), "child", "name", snapshot.Options{}); err == nil {
		t.Error("prepared twice")
	}
	for _, key := range []string{"view", "child", "name"} {
		if err := sn.Remove(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Publish(ctx) }()
	want := []string{
		`one /snapshot/prepare {"key":"key","snapshotter":"overlayfs"}`,
		`one /snapshot/commit {"key":"key","name":"name","snapshotter":"overlayfs"}`,
		`one /snapshot/prepare {"key":"child","parent":"name","snapshotter":"overlayfs"}`,
		`one /snapshot/remove {"key":"view","snapshotter":"overlayfs"}`,
		`one /snapshot/remove {"key":"child","snapshotter":"overlayfs"}`,
		`one /snapshot/remove {"key":"name","snapshotter":"overlayfs"}`,
	}
	waitFor(t, "the events", func() bool { return len(bus.all()) >= len(want) })
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Publish: %v", err)
	}
	if diff := cmp.Diff(want, bus.all()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func ownerOf(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}
