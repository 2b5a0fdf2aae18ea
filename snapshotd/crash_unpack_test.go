package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/gc/gctest"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/unpack"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
)

// A cutting is a store that is worked on until its power fails.
type cutting struct {
	cfg   Config
	needs Needs
	of    string
	power *powerDisk
}

// eachCut runs a test with the power cut before the first change, then before the
// second, and so on until nothing was cut. Names that were not synced are there
// after every other cut.
func eachCut(t *testing.T, snapshotter string, test func(t *testing.T, c *cutting)) {
	first, step := cuts()
	if snapshotter != Overlayfs && !difftest.Raced {
		first, step = 1+rand.IntN(3), 3 // most of it is the same for all
	}
	for cut, more := first, true; more && cut < cutsMax; cut += step {
		t.Run(fmt.Sprint("cut ", cut), func(t *testing.T) {
			more = false
			c := &cutting{cfg: testConfig(t), needs: quietNeeds(t), of: snapshotter, power: newPowerDisk(cut)}
			inMemory(t, filepath.Dir(c.cfg.Root))
			place(t, c.cfg, snapshotter)
			test(t, c)
			more = c.power.changes >= cut
		})
	}
}

// open opens the store on the disk whose power fails.
func (c *cutting) open(t *testing.T) (*Store, error) {
	t.Helper()
	s, err := open(c.cfg, c.needs, c.power, kernel.New())
	if err == nil {
		s.db.Records = c.power.behind(s.db.Records)
		if err = s.skipped[c.of]; err != nil {
			s.Close()
		}
	}
	if err != nil && !errors.Is(err, errPower) {
		t.Fatalf("open: %v", err)
	}
	return s, err
}

// later is a clock by which no cycle of before the power failed is under way.
func later() gc.Instant { return gc.Now().Add(time.Hour) }

// start opens the store on a disk that stays, after the power has failed.
func (c *cutting) start(t *testing.T) (*Store, snapshots) {
	t.Helper()
	c.power.forget(t, filepath.Join(c.cfg.Root, c.of), c.power.cutAt%2 == 0)
	s, err := openAt(c.cfg, c.needs, driver.Files{}, kernel.New(), later)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s, inOf(t, s, one, c.of)
}

// layersOf are those of an image.
func layersOf(blobs *difftest.Blobs) []unpack.Layer { return layersOfImage(blobs, "one") }

// layersOfImage are three layers, with a file of each that says which one it is.
// The second cannot be extracted without the first.
func layersOfImage(blobs *difftest.Blobs, image string) []unpack.Layer {
	var layers []unpack.Layer
	for i, entries := range [][]difftest.Entry{
		{difftest.Dir("usr"), difftest.Symlink("lib", "usr")},
		{difftest.File("lib/a", "x")},
		{difftest.File("usr/b", "y"), difftest.File("lib/.wh.a", "")},
	} {
		b := difftest.Tar(append(entries, difftest.File("image", image), difftest.File(unsyncedName, fmt.Sprint("layer ", i)))...)
		d := digest.FromBytes(b)
		blobs.Put(one.Name, d, b)
		layers = append(layers, unpack.Layer{
			Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(b))}, DiffID: d,
		})
	}
	return layers
}

// wantLayers finds the lowest so many layers, and maybe more, each whole and on
// the one below.
func wantLayers(t *testing.T, sn snapshots, names []string, least int) {
	t.Helper()
	parent, ended := "", false
	for i, name := range names {
		info, err := sn.Stat(t.Context(), name)
		if errors.Is(err, errdefs.ErrNotFound) && i >= least {
			ended = true
			continue
		}
		if err != nil || info.Kind != snapshot.Committed || info.Parent != parent || ended {
			t.Errorf("layer %d is %+v, %v", i, info, err)
			continue
		}
		if got, err := written(t, sn, name); got != fmt.Sprint("layer ", i) {
			t.Errorf("the file of layer %d is %q, %v", i, got, err)
		}
		parent = name
	}
}

// wantSound finds nothing wrong, but what is left of a snapshot that was being
// made when the power failed.
func wantSound(t *testing.T, s *Store) {
	t.Helper()
	wantTidy(t, s, "in the end")
	if found := findings(t, s, fsck.Options{}); len(found) > 0 {
		t.Errorf("a check finds %+v", found)
	}
}

// TestUnpackPowerLoss cuts the power at every step of Unpack, and of the
// collector after it. What is there then are whole layers on whole layers, all
// that was told is among them, and the rest can be unpacked.
func TestUnpackPowerLoss(t *testing.T) {
	onEach(t, func(t *testing.T, snapshotter string) {
		eachCut(t, snapshotter, func(t *testing.T, c *cutting) {
			blobs := difftest.NewBlobs()
			c.needs.Content = blobs
			layers := layersOf(blobs)
			names, err := unpack.Names(layers)
			must(t, err)
			told := 0
			if s, err := c.open(t); err == nil {
				if err = c.unpack(t.Context(), t, s, layers, &told); err == nil {
					told = len(layers)
					err = s.empty(t.Context())
				}
				if err != nil && !errors.Is(err, errPower) {
					t.Errorf("Unpack: %v", err)
				}
				must(t, s.Close())
			}
			s, sn := c.start(t)
			wantLayers(t, sn, names, told)
			wantSound(t, s)
			must(t, c.unpack(t.Context(), t, s, layers, new(int)))
			wantLayers(t, sn, names, len(names))
			files := lookIn(t, sn, names[len(names)-1])
			if got := slices.Sorted(maps.Keys(files)); !slices.Equal(got, []string{"image", "lib", "usr", "usr/b", unsyncedName}) {
				t.Errorf("there is %q", got)
			}
		})
	})
}

// unpack also counts the layers, from the lowest on, that it was told of.
func (c *cutting) unpack(ctx context.Context, t *testing.T, s *Store, layers []unpack.Layer, told *int) error {
	t.Helper()
	service, err := s.Unpacking().In(one, c.of)
	must(t, err)
	return unpack.Wait(service.Unpack(ctx, layers), func(p unpack.Progress) {
		if p.Phase.Over() {
			*told = max(*told, p.Layer+1)
		}
	})
}

// TestUnpackIsCancelledAnywhere ends the call at every step. The store goes on,
// and nothing is left, nor held.
func TestUnpackIsCancelledAnywhere(t *testing.T) {
	onEach(t, func(t *testing.T, snapshotter string) {
		eachCut(t, snapshotter, func(t *testing.T, c *cutting) {
			blobs := difftest.NewBlobs()
			c.needs.Content = blobs
			layers := layersOf(blobs)
			names, err := unpack.Names(layers)
			must(t, err)
			openOnce(t, c.cfg)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			c.power.instead = cancel
			s, err := c.open(t)
			must(t, err)
			defer s.Close()
			sn, told := inOf(t, s, one, snapshotter), 0
			if err := c.unpack(ctx, t, s, layers, &told); err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("Unpack: %v", err)
			}
			wantLayers(t, sn, names, told)
			s.mu.Lock()
			if len(s.held)+len(s.making)+len(s.flights.m)+len(s.applies) > 0 {
				t.Errorf("held: %v, made: %v, flights: %v, places: %d", s.held, s.making, s.flights.m, len(s.applies))
			}
			s.mu.Unlock()
			wantSound(t, s)
			must(t, c.unpack(t.Context(), t, s, layers, &told))
			wantLayers(t, sn, names, len(names))
		})
	})
}

func noneLeased() map[string][]lease.Ref { return nil }

// TestSweepPowerLoss cuts the power while garbage goes. Whatever is left has its
// parent and its files, and what was to stay is there.
func TestSweepPowerLoss(t *testing.T) {
	onEach(t, func(t *testing.T, snapshotter string) {
		eachCut(t, snapshotter, func(t *testing.T, c *cutting) {
			s, err := open(c.cfg, c.needs, driver.Files{}, kernel.New())
			must(t, err)
			sn := inOf(t, s, one, snapshotter)
			chainOf(t, sn, "dead", 2)
			kept := chainOf(t, sn, "kept", 1)
			_, err = sn.Update(t.Context(), snapshot.Info{Name: "keptactive", Labels: map[string]string{gc.LabelRoot: "yes"}}, "labels."+gc.LabelRoot)
			must(t, err)
			must(t, s.Close())
			if s, err := c.open(t); err == nil {
				owners := &gctest.Coordinator{Owners: []gc.Owner{s}, Now: gc.Now, Leases: noneLeased}
				_, err := owners.Cycle(t.Context())
				if err = errors.Join(err, s.empty(t.Context())); err != nil && !errors.Is(err, errPower) {
					t.Errorf("a cycle: %v", err)
				}
				s.Close()
			}
			s, sn = c.start(t)
			for i, err := range sn.List(t.Context()) {
				must(t, err)
				if _, err := sn.Stat(t.Context(), i.Parent); i.Parent != "" && err != nil {
					t.Errorf("the parent of %s: %v", i.Name, err)
				}
				lookIn(t, sn, i.Name)
			}
			wantSound(t, s)
			_, err = (&gctest.Coordinator{Owners: []gc.Owner{s}, Now: later, Leases: noneLeased}).Cycle(t.Context())
			must(t, err)
			wantSound(t, s)
			var names []string
			for i := range sn.List(t.Context()) {
				names = append(names, i.Name)
			}
			if slices.Sort(kept); !slices.Equal(names, kept) {
				t.Errorf("there are %q, want %q", names, kept)
			}
		})
	})
}

// TestRebuildPowerLoss cuts the power while the records are made again.
func TestRebuildPowerLoss(t *testing.T) {
	needRoot(t)
	eachCut(t, Overlayfs, func(t *testing.T, c *cutting) {
		s, err := open(c.cfg, c.needs, driver.Files{}, kernel.New())
		must(t, err)
		names := chainOf(t, in(t, s, one), "lost", 2)
		must(t, s.Close())
		must(t, os.RemoveAll(filepath.Join(c.cfg.Root, "db")))
		if s, err := c.open(t); err == nil {
			s.Close()
		}
		s, sn := c.start(t)
		for _, name := range names {
			if i, err := sn.Stat(t.Context(), name); err != nil || i.Labels[gc.LabelRoot] == "" {
				t.Errorf("%s is %+v, %v", name, i, err)
			}
			lookIn(t, sn, name)
		}
		wantSound(t, s)
	})
}
