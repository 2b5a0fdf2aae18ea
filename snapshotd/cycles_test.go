package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/unpack"
)

const (
	cyclesOf  = "SNAPSHOTD_TEST_CYCLES" // how many, if not cyclesFew
	cyclesFew = 40
	cyclesIn  = "SNAPSHOTD_TEST_CYCLES_IN" // the snapshotter, in the child

	// cyclesWarm are not counted: pools fill, and tables are made.
	cyclesWarm = 10
)

// What may grow all the same: the database and the runtime keep some of what they
// have got.
const (
	moreHeap        = 1 << 20
	moreDescriptors = 4
)

// TestNothingGrows makes and removes snapshots in every way, again and again, in
// a process and a mount namespace of its own. Then there is what there was before.
func TestNothingGrows(t *testing.T) {
	cycles, err := strconv.Atoi(os.Getenv(cyclesOf))
	if err != nil {
		cycles = cyclesFew
	}
	if snapshotter := os.Getenv(cyclesIn); snapshotter != "" {
		grow(t, snapshotter, cycles)
		return
	}
	onEach(t, func(t *testing.T, snapshotter string) {
		n := cycles
		if snapshotter != Overlayfs {
			n = cycles / 4
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNothingGrows$", "-test.v")
		cmd.Env = append(os.Environ(), cyclesIn+"="+snapshotter, cyclesOf+"="+strconv.Itoa(n))
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "after ") {
				t.Log(strings.TrimSpace(line))
			}
		}
	})
}

// A toll is what a process and its store take up.
type toll struct {
	goroutines, descriptors, rows, files int
	heap                                 int64
	mounts                               []string // lines of the table
}

func (a toll) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %d mounts, %d rows, %d files and directories, %d KiB of heap",
		a.goroutines, a.descriptors, len(a.mounts), a.rows, a.files, a.heap>>10)
}

func grow(t *testing.T, snapshotter string, cycles int) {
	cfg := testConfig(t)
	inMemory(t, filepath.Dir(cfg.Root))
	place(t, cfg, snapshotter)
	needs := quietNeeds(t)
	blobs := difftest.NewBlobs()
	needs.Content = blobs
	s := openTest(t, cfg, needs)
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { s.Publish(ctx) })
	work.Go(func() { s.Collect(ctx) })
	work.Go(func() { s.Unmount(ctx) })
	defer work.Wait()
	defer cancel()

	c := newCycle(t, s, snapshotter, blobs)
	for i := range cyclesWarm {
		c.run(t, i)
	}
	before := c.settled(t)
	for i := range cycles {
		c.run(t, cyclesWarm+i)
	}
	var after toll
	defer func() { t.Logf("before %d cycles: %v; after them: %v", cycles, before, after) }()
	waitFor(t, "goroutines, descriptors and heap to be as before", func() bool {
		after = c.settled(t)
		return after.goroutines <= before.goroutines && after.descriptors <= before.descriptors+moreDescriptors && after.heap <= before.heap+moreHeap
	})
	waitFor(t, "every event to be published", func() bool {
		_, events := c.rows(t)
		return events == 0
	})
	if after.rows != before.rows || after.files != before.files {
		t.Error("rows or files are not as many as before")
	}
	for _, m := range after.mounts {
		// Those of others that were copied into the namespace may go.
		if !slices.Contains(before.mounts, m) {
			t.Errorf("there is a mount: %s", m)
		}
	}
}

// A cycle leaves a store as it was.
type cycle struct {
	s      *Store
	sn     snapshots
	blobs  *difftest.Blobs
	of     string
	layer  ocispec.Descriptor
	image  []unpack.Layer
	broken unpack.Layer
}

func newCycle(t *testing.T, s *Store, snapshotter string, blobs *difftest.Blobs) *cycle {
	c := &cycle{s: s, sn: inOf(t, s, one, snapshotter), blobs: blobs, of: snapshotter}
	put := func(archive []byte) unpack.Layer {
		packed := difftest.Gzip(archive)
		d := digest.FromBytes(packed)
		blobs.Put(one.Name, d, packed)
		return unpack.Layer{
			Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(packed))},
			DiffID:     digest.FromBytes(archive),
		}
	}
	for i := range 3 {
		c.image = append(c.image, put(difftest.Tar(difftest.Dir("d"), difftest.File(fmt.Sprint("d/", i), "x"), difftest.File("f", fmt.Sprint(i)))))
	}
	c.layer = c.image[1].Descriptor
	c.broken = put(difftest.Tar(difftest.File("fine", "x")))
	c.broken.DiffID = digest.FromString("another")
	return c
}

// run makes a snapshot and removes it; sometimes more.
func (c *cycle) run(t *testing.T, i int) {
	key, name := fmt.Sprint("key ", i), fmt.Sprint("name ", i)
	_, err := c.s.Layers().In(one).Apply(t.Context(), c.layer, prepare(t, c.sn, key, ""), diff.ApplyOptions{})
	must(t, err)
	commitTo(t, c.sn, name, key, "")
	_, err = c.sn.View(t.Context(), key, name, snapshot.Options{})
	must(t, err)
	must(t, c.sn.Remove(t.Context(), key))
	if i%5 == 0 {
		upper := prepare(t, c.sn, key, name)
		_, err = c.s.Layers().In(one).Apply(t.Context(), c.image[2].Descriptor, upper, diff.ApplyOptions{})
		must(t, err)
		_, err = c.s.Layers().In(one).Diff(t.Context(), nil, upper, diff.DiffOptions{MediaType: ocispec.MediaTypeImageLayer})
		must(t, err)
		_, err = c.s.Activations().In(one).Activate(t.Context(), key, upper, activation.Options{Temporary: true})
		must(t, err)
		must(t, c.s.Activations().In(one).Deactivate(t.Context(), key))
		must(t, c.sn.Remove(t.Context(), key))
		c.unpack(t)
	}
	must(t, c.sn.Remove(t.Context(), name))
	must(t, ignoreBusy(c.s.empty(t.Context())))
}

// ignoreBusy: the store's own collector may be at the same tree.
func ignoreBusy(err error) error {
	if errors.Is(err, errBusy) {
		return nil
	}
	return err
}

// unpack makes what it can of an image, and removes it.
func (c *cycle) unpack(t *testing.T) {
	service, err := c.s.Unpacking().In(one, c.of)
	must(t, err)
	names, err := unpack.Names(c.image)
	must(t, err)
	if err := unpack.Wait(service.Unpack(t.Context(), append([]unpack.Layer{c.image[0]}, c.broken)), nil); err == nil {
		t.Error("a layer that is not what was wanted was unpacked")
	}
	must(t, unpack.Wait(service.Unpack(t.Context(), c.image), nil))
	for i := range names {
		must(t, c.sn.Remove(t.Context(), names[len(names)-1-i]))
	}
}

// rows counts those of the database, and of events that are not published yet.
func (c *cycle) rows(t *testing.T) (rows, events int) {
	t.Helper()
	must(t, c.s.db.View(func(tx *kv.Tx) error {
		for key := range tx.Scan(nil, nil) {
			if kv.Parts(key)[0] == "outbox" {
				events++
			} else {
				rows++
			}
		}
		return nil
	}))
	return rows, events
}

// settled is what there is when all work is done.
func (c *cycle) settled(t *testing.T) (a toll) {
	t.Helper()
	must(t, ignoreBusy(c.s.empty(t.Context())))
	a.rows, _ = c.rows(t)
	must(t, filepath.WalkDir(filepath.Dir(c.s.cfg.Root), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && filepath.Base(path) == "db" {
			return filepath.SkipDir
		}
		a.files++
		return err
	}))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	descriptors, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	a.mounts, a.descriptors = slices.Collect(strings.Lines(string(mounts))), len(descriptors)
	for range 2 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	a.goroutines, a.heap = runtime.NumGoroutine(), int64(m.HeapAlloc)
	return a
}
