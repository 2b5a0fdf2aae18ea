package snapshotd

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/diff/diffrpc"
	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/lease/leaserpc"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/namespace/namespacerpc"
	"github.com/gantryd/gantry/services/rpc/rpctest"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/snapshot/snapshotrpc"
	"github.com/gantryd/gantry/services/snapshot/snapshottest"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
	"github.com/gantryd/gantry/snapshotd/layer"
	"github.com/gantryd/gantry/snapshotd/tree"
)

// needRoot skips what mounts, loudly.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: overlay mounts, owners and devices")
	}
}

// noLeases has none; nobody publishes.
type noLeases struct{}

func (noLeases) Lookup(context.Context, namespace.Scope) (lease.Ref, error) { return lease.Ref{}, nil }

func (noLeases) Publish(context.Context, event.Event) error { return nil }

// testConfig's root has a plain name, unlike the test.
func testConfig(t testing.TB) Config {
	t.Helper()
	cfg := Default()
	dir, err := os.MkdirTemp("", "snapshotd-")
	if err != nil {
		t.Fatalf("MkdirTemp: %v", err)
	}
	t.Cleanup(func() {
		if err := (driver.Files{}).RemoveTree(context.Background(), dir); err != nil {
			t.Errorf("RemoveTree: %v", err)
		}
	})
	cfg.Root, cfg.State = filepath.Join(dir, "snapshotd"), filepath.Join(dir, "state")
	return cfg
}

func testNeeds(t testing.TB) Needs {
	return Needs{
		Leases: noLeases{}, Events: noLeases{}, Content: difftest.NewBlobs(),
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
}

// openTest opens a store that is closed with the test.
func openTest(t testing.TB, cfg Config, needs Needs) *Store {
	t.Helper()
	return openOn(t, cfg, needs, kernel.New())
}

func openOn(t testing.TB, cfg Config, needs Needs, k kernel.Kernel) *Store {
	t.Helper()
	needRoot(t)
	s, err := open(cfg, needs, driver.Files{}, k)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// Where overlayfs keeps what.
func (s *Store) dir() string           { return filepath.Join(s.rootOf(Overlayfs), "snapshots") }
func (s *Store) path(id uint64) string { return filepath.Join(s.dir(), strconv.FormatUint(id, 10)) }
func (s *Store) fs(id uint64) string   { return filepath.Join(s.path(id), "fs") }
func (s *Store) work(id uint64) string { return filepath.Join(s.path(id), "work") }

func openLeases(t testing.TB, snapshotter string, leases lease.Registry) *Store {
	needs := testNeeds(t)
	needs.Leases = leases
	return openTest(t, configOf(t, snapshotter), needs)
}

func openBlobs(t testing.TB, blobs content.Stores) *Store { return openBlobsOn(t, Overlayfs, blobs) }

func openBlobsOn(t testing.TB, snapshotter string, blobs content.Stores) *Store {
	needs := testNeeds(t)
	needs.Content = blobs
	return openTest(t, configOf(t, snapshotter), needs)
}

func TestSnapshots(t *testing.T) {
	onEach(t, func(t *testing.T, snapshotter string) {
		snapshottest.Run(t, func(t *testing.T, leases lease.Registry) snapshottest.Fixture {
			s := openLeases(t, snapshotter, leases)
			traits := inOf(t, s, one, snapshotter).d.Traits().Traits
			return snapshottest.Fixture{Stores: s, Snapshotter: snapshotter, Traits: traits, Members: s, Holder: s}
		})
	})
}

func TestSnapshotsAcrossTheWire(t *testing.T) {
	onEach(t, func(t *testing.T, snapshotter string) {
		snapshottest.Run(t, func(t *testing.T, leases lease.Registry) snapshottest.Fixture {
			s := openLeases(t, snapshotter, leases)
			conn := rpctest.Pipe(t, func(r grpc.ServiceRegistrar) {
				snapshotrpc.Register(r, s)
				leaserpc.RegisterMembers(r, s)
				namespacerpc.RegisterHolder(r, s)
				snapshotrpc.RegisterMeter(r, s)
			})
			traits := inOf(t, s, one, snapshotter).d.Traits().Traits
			return snapshottest.Fixture{
				Stores: snapshotrpc.NewClient(conn), Snapshotter: snapshotter, Traits: traits,
				Members: leaserpc.NewMembers(conn), Holder: namespacerpc.NewHolder(conn), Meter: snapshotrpc.NewMeter(conn),
			}
		})
	})
}

func TestLayers(t *testing.T) {
	onEach(t, func(t *testing.T, snapshotter string) {
		difftest.Run(t, func(t *testing.T, blobs content.Stores) difftest.Fixture {
			s := openBlobsOn(t, snapshotter, blobs)
			return difftest.Fixture{Services: s.Layers(), Tree: trees{s: s, blobs: blobs, of: snapshotter}.inOrder}
		})
	})
}

func TestLayersAcrossTheWire(t *testing.T) {
	onEach(t, func(t *testing.T, snapshotter string) {
		difftest.Run(t, func(t *testing.T, blobs content.Stores) difftest.Fixture {
			s := openBlobsOn(t, snapshotter, blobs)
			conn := rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { diffrpc.Register(r, s.Layers()) })
			return difftest.Fixture{Services: diffrpc.NewClient(conn), Tree: trees{s: s, blobs: blobs, of: snapshotter}.inOrder}
		})
	})
}

// trees makes snapshots for layers to be applied to.
type trees struct {
	s     *Store
	blobs content.Stores
	of    string // the snapshotter; overlayfs if it is empty
}

// inOrder is a snapshot on top of those that have the layers below.
func (m trees) inOrder(t *testing.T, scope namespace.Scope, below ...[]byte) difftest.Tree {
	t.Helper()
	of := cmp.Or(m.of, Overlayfs)
	sn, err := m.s.In(scope, of)
	if err != nil {
		t.Fatalf("In: %v", err)
	}
	parent := ""
	for i, b := range below {
		key := fmt.Sprintf("%s layer %d of %s", t.Name(), i, digest.FromString(parent+string(b)))
		if _, err := sn.Stat(t.Context(), key+" done"); err == nil {
			parent = key + " done"
			continue
		}
		applyLayer(t, m.s, m.blobs, scope, prepare(t, sn, key, parent), b)
		if err := sn.Commit(t.Context(), key+" done", key, snapshot.Options{}); err != nil {
			t.Fatalf("Commit: %v", err)
		}
		parent = key + " done"
	}
	key := fmt.Sprint(t.Name(), " on ", parent, m.s.last.Load())
	prepare(t, sn, key, parent)
	mounts, err := sn.Mounts(t.Context(), key)
	if err != nil {
		t.Fatalf("Mounts: %v", err)
	}
	return difftest.Tree{Mounts: mounts, Files: func(t *testing.T) map[string]string {
		sn := inOf(t, m.s, scope, of)
		files := lookIn(t, sn, key)
		if found, _ := sn.d.Find(mounts); found.Alone {
			// Before its commit it has marks for the case that it gets parents.
			for name, what := range files {
				files[name] = strings.ReplaceAll(what, " "+layer.ImplicitAttr+"=y", "")
			}
		}
		return files
	}}
}

func in(t testing.TB, s *Store, scope namespace.Scope) snapshots {
	t.Helper()
	return inOf(t, s, scope, Overlayfs)
}

func prepare(t testing.TB, sn snapshot.Store, key, parent string) []mount.Mount {
	t.Helper()
	m, err := sn.Prepare(t.Context(), key, parent, snapshot.Options{})
	if err != nil {
		t.Fatalf("Prepare(%q, %q): %v", key, parent, err)
	}
	return m
}

// applyLayer applies an archive.
func applyLayer(t testing.TB, s *Store, blobs content.Stores, scope namespace.Scope, mounts []mount.Mount, archive []byte) {
	t.Helper()
	d := digest.FromBytes(archive)
	blobs.(*difftest.Blobs).Put(scope.Name, d, archive)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(archive))}
	if _, err := s.Layers().In(scope).Apply(t.Context(), desc, mounts, diff.ApplyOptions{}); err != nil {
		t.Fatalf("Apply: %v", err)
	}
}

// treeOf opens the files of a snapshot as a container sees them.
func treeOf(t testing.TB, sn snapshots, key string) *os.File {
	t.Helper()
	r, chain, err := sn.read(key)
	if err != nil {
		t.Fatalf("files of %q: %v", key, err)
	}
	root, err := sn.d.Tree(t.Context(), sn.known(key, r, chain))
	if err != nil {
		t.Fatalf("files of %q: %v", key, err)
	}
	return root
}

// look describes what a container would see in a snapshot.
func look(t testing.TB, s *Store, scope namespace.Scope, key string) map[string]string {
	t.Helper()
	return lookIn(t, in(t, s, scope), key)
}

func lookIn(t testing.TB, sn snapshots, key string) map[string]string {
	t.Helper()
	root := treeOf(t, sn, key)
	defer root.Close()
	return describe(t, int(root.Fd()))
}

// describe describes what is below root as [difftest.Tree] wants it.
func describe(t testing.TB, root int) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := tree.Walk(t.Context(), root, func(e *tree.Entry) error {
		what, err := describeEntry(e)
		if err != nil {
			return fmt.Errorf("%s: %w", e.Path(), err)
		}
		all[e.Path()] = what
		return nil
	})
	if err != nil {
		t.Fatalf("Walk: %v", err)
	}
	return all
}

func describeEntry(e *tree.Entry) (string, error) {
	dev := func() string { return fmt.Sprintf(" %d:%d", unix.Major(e.Stat.Rdev), unix.Minor(e.Stat.Rdev)) }
	switch e.Stat.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		b := make([]byte, 5000)
		n, err := unix.Readlinkat(e.Dir, e.Name, b)
		return "link " + string(b[:max(n, 0)]), err
	case unix.S_IFCHR:
		return "char" + dev(), nil
	case unix.S_IFBLK:
		return "block" + dev(), nil
	case unix.S_IFIFO:
		return "pipe", nil
	}
	fd, err := unix.Openat(e.Dir, e.Name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), e.Name)
	defer f.Close()
	what := "dir"
	if e.Is(unix.S_IFREG) {
		what = fmt.Sprint("file of ", e.Stat.Size)
		if e.Stat.Size < 1000 {
			b := make([]byte, e.Stat.Size)
			if _, err := f.ReadAt(b, 0); err != nil && len(b) > 0 {
				return "", err
			}
			what = "file " + string(b)
		}
	}
	attrs, err := describeAttrs(fd)
	return what + attrs, err
}

func describeAttrs(fd int) (string, error) {
	b := make([]byte, 64<<10)
	n, err := unix.Flistxattr(fd, b)
	if err != nil {
		return "", err
	}
	names := strings.Split(string(b[:n]), "\x00")
	slices.Sort(names)
	var all strings.Builder
	for _, name := range names {
		if name == "" || name == "security.selinux" {
			continue
		}
		v := make([]byte, 64<<10)
		m, err := unix.Fgetxattr(fd, name, v)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&all, " %s=%s", name, v[:m])
	}
	return all.String(), nil
}
