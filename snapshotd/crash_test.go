package snapshotd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/unpack"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
)

// powerDisk is a disk whose power fails before the cutAt-th change. What was
// not synced until then is gone, as far as forget can tell.
type powerDisk struct {
	driver.Disk
	cutAt   int
	instead func() // is called at that change, and the power stays; nil if it fails

	mu      sync.Mutex
	changes int
	undo    []func() error  // of what was made since the last sync
	blank   []func() error  // makes zeros of what was appended since
	durable map[string]bool // files that were there at a sync
	kept    map[string]bool // directories in which something was published
}

func newPowerDisk(cutAt int) *powerDisk {
	return &powerDisk{Disk: driver.Files{}, cutAt: cutAt, durable: map[string]bool{}, kept: map[string]bool{}}
}

var errPower = errors.New("power failure")

func (d *powerDisk) change() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changes++
	switch {
	case d.instead != nil && d.changes == d.cutAt:
		d.instead()
	case d.instead == nil && d.changes >= d.cutAt:
		return errPower
	}
	return nil
}

func (d *powerDisk) Mkdir(path string, mode fs.FileMode) error {
	if err := d.change(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := os.Lstat(path); err != nil {
		d.undo = append(d.undo, func() error {
			if d.kept[path] {
				return nil
			}
			return os.RemoveAll(path)
		})
	}
	return d.Disk.Mkdir(path, mode)
}

func (d *powerDisk) Chown(path string, uid, gid int) error {
	if err := d.change(); err != nil {
		return err
	}
	return d.Disk.Chown(path, uid, gid)
}

func (d *powerDisk) Rename(from, to string) error {
	if err := d.change(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.undo = append(d.undo, func() error {
		if err := os.Rename(to, from); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil // removed since
	})
	d.keep(from, to)
	return d.Disk.Rename(from, to)
}

// keep notes that what was durable below one path is below another.
func (d *powerDisk) keep(from, to string) {
	for file := range maps.Clone(d.durable) {
		if below, ok := strings.CutPrefix(file, from+"/"); ok {
			d.durable[filepath.Join(to, below)] = true
		}
	}
}

func (d *powerDisk) MakeVolume(path string, mode fs.FileMode) error {
	if err := d.change(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.undo = append(d.undo, func() error { return d.Disk.RemoveVolume(context.Background(), path) })
	return d.Disk.MakeVolume(path, mode)
}

func (d *powerDisk) CloneVolume(from, to string) error {
	if err := d.change(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.undo = append(d.undo, func() error { return d.Disk.RemoveVolume(context.Background(), to) })
	d.keep(from, to)
	return d.Disk.CloneVolume(from, to)
}

func (d *powerDisk) FreezeVolume(path string, readOnly bool) error {
	if err := d.change(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.undo = append(d.undo, func() error {
		if err := d.Disk.FreezeVolume(path, !readOnly); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil // removed since
	})
	return d.Disk.FreezeVolume(path, readOnly)
}

func (d *powerDisk) RemoveVolume(ctx context.Context, path string) error {
	if err := d.change(); err != nil {
		return err
	}
	return d.Disk.RemoveVolume(ctx, path)
}

func (d *powerDisk) SyncFS(path string) error {
	if err := d.change(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.undo, d.blank = nil, nil
	filepath.WalkDir(filepath.Dir(path), func(file string, e fs.DirEntry, err error) error {
		d.durable[file] = true
		return err
	})
	return d.Disk.SyncFS(path)
}

func (d *powerDisk) Publish(path string, write func(f *os.File) error) error {
	if err := d.change(); err != nil {
		return err
	}
	if err := d.change(); err != nil {
		return errors.Join(err, os.WriteFile(path+driver.Unpublished, []byte("half of it"), 0o600))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.kept[filepath.Dir(path)] = true
	return d.Disk.Publish(path, write)
}

func (d *powerDisk) RemoveTree(ctx context.Context, path string) error {
	if err := d.change(); err != nil {
		return err
	}
	return d.Disk.RemoveTree(ctx, path)
}

// forget takes away what was never synced: new directories, or only what is in
// the files below root, if the names happened to reach the disk.
func (d *powerDisk) forget(t *testing.T, root string, keepNames bool) {
	t.Helper()
	undone := d.undo
	if keepNames {
		undone = d.blank
	}
	for _, undo := range slices.Backward(undone) {
		if err := undo(); err != nil {
			t.Fatal(err)
		}
	}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Name() == unsyncedName && !d.durable[path] {
			// That of a frozen volume has been written.
			if err := os.Truncate(path, 0); err != nil && !errors.Is(err, unix.EROFS) {
				return err
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// unsyncedName is the file that a test writes into a snapshot.
const unsyncedName = "written"

// cutsMax is more than there are changes, for who runs one cut alone.
const cutsMax = 1000

// TestPowerLoss cuts the power before the first change to the disk, then
// before the second, and so on until everything was done. After each cut the
// store opens, and keeps what it promised: a committed snapshot is whole, an
// active one can be used, and nothing else is left on disk.
func TestPowerLoss(t *testing.T) {
	onEach(t, func(t *testing.T, snapshotter string) {
		for _, keepNames := range []bool{true, false} {
			first, step := cuts()
			for cut, more := first, true; more && cut < cutsMax; cut += step {
				t.Run(fmt.Sprintf("cut %d (keepNames %t)", cut, keepNames), func(t *testing.T) {
					more = powerLoss(t, snapshotter, keepNames, cut)
				})
			}
		}
	})
}

// cuts returns the first cut and how far it is to the next: all are tried, but
// under the race detector every fifth, from any of the first on.
func cuts() (first, step int) {
	if difftest.Raced {
		return 1 + rand.IntN(5), 5
	}
	return 1, 1
}

// powerLoss cuts the power, and tells whether that kept anything from being
// done.
func powerLoss(t *testing.T, snapshotter string, keepNames bool, cut int) bool {
	t.Helper()
	cfg := testConfig(t)
	inMemory(t, filepath.Dir(cfg.Root))
	place(t, cfg, snapshotter)
	openOnce(t, cfg) // the directories of the daemon itself
	power := newPowerDisk(cut)
	acked := scenario(t, cfg, snapshotter, power)
	power.forget(t, filepath.Join(cfg.Root, snapshotter), keepNames)

	// The power fails again while the store opens, at each change.
	for again, step := cuts(); ; again += step {
		second := newPowerDisk(again)
		s, err := open(cfg, quietNeeds(t), second, kernel.New())
		if err == nil {
			err = errors.Join(s.empty(t.Context()), s.Close())
		}
		if second.changes < again {
			if err != nil {
				t.Errorf("Open after all: %v", err)
			}
			break
		}
	}
	check(t, cfg, snapshotter, "after power loss", acked)
	return power.changes >= cut
}

// inMemory mounts an empty file system at a directory: what is durable is for
// powerDisk to say, and no real disk has to be waited for.
func inMemory(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1g"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A loop device lets go of its file after it was unmounted.
		waitFor(t, "everything in memory to be let go", func() bool {
			err := unix.Unmount(dir, 0)
			if err != nil && !errors.Is(err, unix.EBUSY) {
				t.Errorf("unmount %s: %v", dir, err)
			}
			return !errors.Is(err, unix.EBUSY)
		})
	})
}

func quietNeeds(t *testing.T) Needs {
	needs := testNeeds(t)
	needs.Log = slog.New(slog.DiscardHandler)
	return needs
}

func openOnce(t *testing.T, cfg Config) {
	t.Helper()
	s, err := Open(cfg, quietNeeds(t))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

// ack is what a caller was told.
type ack struct{ prepared, committed, removed map[string]bool }

// scenario uses a store until its power fails.
func scenario(t *testing.T, cfg Config, snapshotter string, d driver.Disk) (a ack) {
	t.Helper()
	a = ack{map[string]bool{}, map[string]bool{}, map[string]bool{}}
	s, err := open(cfg, quietNeeds(t), d, kernel.New())
	if err != nil {
		if !errors.Is(err, errPower) {
			t.Fatalf("open: %v", err)
		}
		return a
	}
	defer s.Close()
	if err := s.skipped[snapshotter]; err != nil {
		if !errors.Is(err, errPower) {
			t.Fatalf("open: %v", err)
		}
		return a
	}
	sn := inOf(t, s, one, snapshotter)
	ctx := t.Context()
	step := func(done map[string]bool, key string, err error) bool {
		if err == nil {
			done[key] = true
		} else if !errors.Is(err, errPower) {
			t.Errorf("%s: %v", key, err)
		}
		return err == nil
	}
	parent := ""
	for i := range 2 {
		key, name := fmt.Sprint("key", i), fmt.Sprint("name", i)
		m, err := sn.Prepare(ctx, key, parent, snapshot.Options{})
		if !step(a.prepared, key, err) {
			return a
		}
		write(t, m, name)
		if !step(a.committed, name, sn.Commit(ctx, name, key, snapshot.Options{})) {
			return a
		}
		delete(a.prepared, key)
		parent = name
	}
	if _, err := sn.Prepare(ctx, "active", parent, snapshot.Options{}); !step(a.prepared, "active", err) {
		return a
	}
	if _, err := sn.View(ctx, "view", "", snapshot.Options{}); !step(a.prepared, "view", err) {
		return a
	}
	if _, err := sn.Prepare(ctx, "short-lived", "", snapshot.Options{}); !step(a.prepared, "short-lived", err) {
		return a
	}
	delete(a.prepared, "short-lived")
	if step(a.removed, "short-lived", sn.Remove(ctx, "short-lived")) {
		if err := s.empty(ctx); err != nil && !errors.Is(err, errPower) {
			t.Errorf("empty: %v", err)
		}
	}
	return a
}

// write is what a container does in a snapshot.
func write(t *testing.T, m []mount.Mount, text string) {
	t.Helper()
	last := m[len(m)-1]
	dir := last.Source
	for _, o := range last.Options {
		if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
			dir = upper
		}
	}
	if err := os.WriteFile(filepath.Join(dir, unsyncedName), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// check compares what was acknowledged with what is there.
func check(t *testing.T, cfg Config, snapshotter, when string, a ack) {
	t.Helper()
	s, err := Open(cfg, quietNeeds(t))
	if err != nil {
		t.Fatalf("%s: Open: %v", when, err)
	}
	defer s.Close()
	sn := inOf(t, s, one, snapshotter)
	for name := range a.committed {
		i, err := sn.Stat(t.Context(), name)
		if err != nil || i.Kind != snapshot.Committed {
			t.Errorf("%s: %s is %v, %v, want committed", when, name, i.Kind, err)
			continue
		}
	}
	for i, err := range sn.List(t.Context()) {
		if err != nil {
			t.Fatalf("%s: List: %v", when, err)
		}
		r, chain, err := sn.read(i.Name)
		if err != nil {
			t.Errorf("%s: %s: %v", when, i.Name, err)
		}
		if i.Kind == snapshot.Committed {
			if got, err := written(t, sn, i.Name); got != i.Name {
				t.Errorf("%s: the file of %s is %q, %v", when, i.Name, got, err)
			}
			continue
		}
		// It is as its parent, or has what was written to it; what was written
		// may be lost, and leaves an empty file.
		if got, err := written(t, sn, i.Name); got != i.Parent && got != strings.Replace(i.Name, "key", "name", 1) && got != "" {
			t.Errorf("%s: the file of %s on %q is %q, %v", when, i.Name, i.Parent, got, err)
		}
		if i.Kind == snapshot.Active && len(chain) > 0 {
			into, done, err := sn.d.Extract(t.Context(), sn.known(i.Name, r, chain), false)
			if err != nil {
				t.Errorf("%s: %s: %v", when, i.Name, err)
				continue
			}
			if into.Root != nil {
				root, err := into.Root()
				if err != nil {
					t.Errorf("%s: mount of %s: %v", when, i.Name, err)
				} else {
					root.Close()
				}
			}
			if err := done(); err != nil {
				t.Error(err)
			}
		}
	}
	for key := range a.prepared {
		_, err := sn.Stat(t.Context(), key)
		// The commit of the key may have become true without an answer.
		if _, committed := sn.Stat(t.Context(), strings.Replace(key, "key", "name", 1)); err != nil && committed != nil {
			t.Errorf("%s: %s was prepared: %v", when, key, err)
		}
	}
	for key := range a.removed {
		if _, err := sn.Stat(t.Context(), key); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("%s: %s was removed: %v", when, key, err)
		}
	}
	wantTidy(t, s, when)
}

// written returns the contents of the file that write wrote, empty if there is
// none.
func written(t *testing.T, sn snapshots, key string) (string, error) {
	t.Helper()
	root := treeOf(t, sn, key)
	defer root.Close()
	fd, err := unix.Openat(int(root.Fd()), unsyncedName, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), unsyncedName)
	defer f.Close()
	b, err := io.ReadAll(f)
	return string(b), err
}

// wantTidy finds no directory that is nobody's.
func wantTidy(t *testing.T, s *Store, when string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context()) // the test may be over
	if err := s.empty(ctx); err != nil {
		t.Errorf("%s: empty: %v", when, err)
	}
	found, err := s.trees(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for id := range found {
		if whose(t, s, id) == nil {
			t.Errorf("%s: directory %d is nobody's", when, id)
		}
	}
}

// TestKill kills the process at random moments. What it acknowledged before is
// there.
func TestKill(t *testing.T) {
	if root := os.Getenv("SNAPSHOTD_TEST_ROOT"); root != "" {
		victim(t, root, os.Getenv("SNAPSHOTD_TEST_SNAPSHOTTER"))
		return
	}
	onEach(t, killed)
}

func killed(t *testing.T, snapshotter string) {
	cfg := configOf(t, snapshotter)
	committed, removed := map[string]bool{}, map[string]bool{}
	for round := range 6 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$", "-test.v")
		cmd.Env = append(os.Environ(), "SNAPSHOTD_TEST_ROOT="+cfg.Root, "SNAPSHOTD_TEST_SNAPSHOTTER="+snapshotter, "SNAPSHOTD_TEST_ROUND="+strconv.Itoa(round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		limit := 3 + rand.IntN(40)
		for n := 0; lines.Scan(); {
			f := strings.Fields(lines.Text())
			if len(f) != 3 || f[0] != "ack" {
				continue
			}
			switch f[1] {
			case "committed":
				committed[f[2]] = true
			case "removing": // from now on, either is right
				delete(committed, f[2])
			case "removed":
				removed[f[2]] = true
			}
			if n++; n == limit {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		s, err := Open(cfg, quietNeeds(t))
		if err != nil {
			t.Fatalf("Open after kill %d: %v", round, err)
		}
		sn := inOf(t, s, one, snapshotter)
		for name := range committed {
			r, _, err := sn.read(name)
			if err != nil || r.Kind != snapshot.Committed {
				t.Errorf("after kill %d: %s: %v, %v", round, name, r.Kind, err)
				continue
			}
			if got, err := written(t, sn, name); got != name && !strings.HasPrefix(name, "sha256:") || got == "" {
				t.Errorf("after kill %d: the file of %s is %q, %v", round, name, got, err)
			}
		}
		for name := range removed {
			if _, err := sn.Stat(t.Context(), name); !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("after kill %d: %s was removed: %v", round, name, err)
			}
		}
		wantTidy(t, s, fmt.Sprint("after kill ", round))
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	t.Logf("%d committed, %d removed", len(committed), len(removed))
}

// victim uses a store until it is killed, and says what was acknowledged.
func victim(t *testing.T, root, snapshotter string) {
	cfg := Default()
	cfg.Root, cfg.State = root, filepath.Join(filepath.Dir(root), "state")
	needs, blobs := quietNeeds(t), difftest.NewBlobs()
	needs.Content = blobs
	s, err := Open(cfg, needs)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	go s.Collect(t.Context())
	sn := inOf(t, s, one, snapshotter)
	var wg sync.WaitGroup
	var mu sync.Mutex
	say := func(what, name string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Println("ack", what, name)
	}
	deadline := time.Now().Add(20 * time.Second) // the parent may have died
	for w := range 3 {
		wg.Go(func() {
			last := ""
			for i := 0; time.Now().Before(deadline); i++ {
				key := fmt.Sprintf("r%s-w%d-%d", os.Getenv("SNAPSHOTD_TEST_ROUND"), w, i)
				m, err := sn.Prepare(t.Context(), "key-"+key, "", snapshot.Options{})
				if err != nil {
					t.Errorf("Prepare: %v", err)
					return
				}
				write(t, m, key)
				if err := sn.Commit(t.Context(), key, "key-"+key, snapshot.Options{}); err != nil {
					t.Errorf("Commit: %v", err)
					return
				}
				say("committed", key)
				if last != "" && i%2 == 0 {
					say("removing", last)
					if err := sn.Remove(t.Context(), last); err != nil {
						t.Errorf("Remove: %v", err)
						return
					}
					say("removed", last)
				}
				last = key
			}
		})
	}
	wg.Go(func() { unpackUntil(t, s, snapshotter, blobs, deadline, say) })
	wg.Wait()
}

// unpackUntil unpacks images, and removes every other.
func unpackUntil(t *testing.T, s *Store, snapshotter string, blobs *difftest.Blobs, deadline time.Time, say func(what, name string)) {
	service, err := s.Unpacking().In(one, snapshotter)
	must(t, err)
	sn := inOf(t, s, one, snapshotter)
	for i := 0; time.Now().Before(deadline); i++ {
		layers := layersOfImage(blobs, fmt.Sprint(os.Getenv("SNAPSHOTD_TEST_ROUND"), "-", i))
		names, err := unpack.Names(layers)
		must(t, err)
		if err := unpack.Wait(service.Unpack(t.Context(), layers), func(p unpack.Progress) {
			if p.Phase.Over() {
				say("committed", p.Name)
			}
		}); err != nil {
			t.Errorf("Unpack: %v", err)
			return
		}
		for _, name := range slices.Backward(names[i%2*len(names):]) {
			say("removing", name)
			if err := sn.Remove(t.Context(), name); err != nil {
				t.Errorf("Remove: %v", err)
				return
			}
			say("removed", name)
		}
	}
}
