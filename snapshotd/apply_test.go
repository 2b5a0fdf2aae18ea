package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
	"github.com/gantryd/gantry/snapshotd/tree"
)

var (
	one = namespace.Scope{Name: "one"}
	two = namespace.Scope{Name: "two"}
)

func commitTo(t testing.TB, sn snapshot.Store, name, key, parent string) {
	t.Helper()
	if err := sn.Commit(t.Context(), name, key, snapshot.Options{Parent: parent}); err != nil {
		t.Fatalf("Commit(%q, %q) on %q: %v", name, key, parent, err)
	}
}

// TestLayersOnAnOldKernel is the promises where overlays are mounted by a
// thread of their own.
func TestLayersOnAnOldKernel(t *testing.T) {
	needRoot(t)
	difftest.Run(t, func(t *testing.T, blobs content.Stores) difftest.Fixture {
		needs := testNeeds(t)
		needs.Content = blobs
		s, err := open(testConfig(t), needs, driver.Files{}, kernel.Old())
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		t.Cleanup(func() { s.Close() })
		return difftest.Fixture{Services: s.Layers(), Tree: trees{s: s, blobs: blobs}.inOrder}
	})
}

// TestApplyTouchesNothingElse gives Apply every other mount there is.
func TestApplyTouchesNothingElse(t *testing.T) {
	blobs := difftest.NewBlobs()
	s := openBlobs(t, blobs)
	sn := in(t, s, one)
	prepare(t, sn, "base", "")
	commitTo(t, sn, "base done", "base", "")
	view, err := sn.View(t.Context(), "view", "base done", snapshot.Options{})
	if err != nil {
		t.Fatal(err)
	}
	active := prepare(t, sn, "active", "base done")
	other := prepare(t, in(t, s, two), "theirs", "")
	empty, err := sn.View(t.Context(), "empty", "", snapshot.Options{})
	if err != nil {
		t.Fatal(err)
	}
	host := t.TempDir()
	bindTo := func(path string) []mount.Mount {
		return []mount.Mount{{Type: "bind", Source: path, Options: []string{"rw", "rbind"}}}
	}
	upper := func(path string) []mount.Mount {
		return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"upperdir=" + path, "lowerdir=" + host, "workdir=" + host}}}
	}
	archive := difftest.Tar(difftest.File("evil", "x"))
	d := digest.FromBytes(archive)
	blobs.Put(one.Name, d, archive)
	before := fingerprint(t, s.dir())
	for what, mounts := range map[string][]mount.Mount{
		"none":                        nil,
		"a directory of the host":     bindTo(host),
		"the root of the host":        bindTo("/"),
		"an overlay of the host":      upper(host),
		"a view":                      view,
		"an empty view":               empty,
		"a committed snapshot":        bindTo(s.fs(1)),
		"another namespace's":         other,
		"a snapshot's directory":      bindTo(s.path(2)),
		"a snapshot's scratch":        bindTo(s.work(2)),
		"below a snapshot":            bindTo(s.fs(2) + "/etc"),
		"through a snapshot":          bindTo(s.fs(2) + "/../../../.."),
		"a snapshot that is not":      bindTo(s.fs(4711)),
		"a number with a sign":        bindTo(filepath.Join(s.dir(), "+2", "fs")),
		"two mounts":                  append(slices.Clone(active), active...),
		"another file system":         {{Type: "tmpfs", Source: s.fs(2)}},
		"a snapshot, to be read only": {{Type: "bind", Source: s.fs(2), Options: []string{"ro"}}},
	} {
		layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(archive))}
		_, err := s.Layers().In(one).Apply(t.Context(), layer, mounts, diff.ApplyOptions{})
		if !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Apply to %s: %v, want %v", what, err, errdefs.ErrInvalidArgument)
		}
	}
	if after := fingerprint(t, s.dir()); after != before {
		t.Errorf("the snapshots changed from\n%s\nto\n%s", before, after)
	}
	if entries, err := os.ReadDir(host); len(entries) > 0 || err != nil {
		t.Errorf("the host's directory has %v, %v", entries, err)
	}
	// What the caller says of the layers below does not count.
	lie := slices.Clone(active)
	lie[0].Options = []string{"upperdir=" + s.fs(2), "lowerdir=" + host, "workdir=" + host}
	for _, m := range active[0].Options {
		if strings.HasPrefix(m, "upperdir=") {
			lie[0].Options[0] = m
		}
	}
	applyLayer(t, s, blobs, one, lie, archive)
	if got := look(t, s, one, "active"); got["evil"] != "file x" {
		t.Errorf("the snapshot has %v", got)
	}
	if entries, err := os.ReadDir(host); len(entries) > 0 || err != nil {
		t.Errorf("the host's directory has %v, %v", entries, err)
	}
}

// TestApplyLeavesNoMount looks at the mount table, and whether the snapshot can
// be mounted at once.
func TestApplyLeavesNoMount(t *testing.T) {
	for old, k := range map[bool]kernel.Kernel{false: kernel.New(), true: kernel.Old()} {
		blobs := difftest.NewBlobs()
		needs := testNeeds(t)
		needs.Content = blobs
		s := openOn(t, testConfig(t), needs, k)
		sn := in(t, s, one)
		prepare(t, sn, "base", "")
		commitTo(t, sn, "done", "base", "")
		mounts := prepare(t, sn, "active", "done")
		before := mountTable(t)
		applyLayer(t, s, blobs, one, mounts, difftest.Tar(difftest.File("f", "x"), difftest.File(".wh.g", "")))
		if diff := cmp.Diff(before, mountTable(t)); diff != "" {
			t.Errorf("old kernel %t: the mount table changed (-before +after):\n%s", old, diff)
		}
		at := t.TempDir()
		if err := unix.Mount("overlay", at, "overlay", 0, strings.Join(mounts[0].Options, ",")); err != nil {
			t.Fatalf("old kernel %t: mount: %v", old, err)
		}
		b, err := os.ReadFile(filepath.Join(at, "f"))
		if string(b) != "x" || err != nil {
			t.Errorf("old kernel %t: the file is %q, %v", old, b, err)
		}
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("old kernel %t: unmount: %v", old, err)
		}
	}
}

// mountTable is of this process, without what other tests mount meanwhile.
func mountTable(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var ours []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "snapshotd-") || strings.Contains(line, " overlay ") {
			ours = append(ours, line)
		}
	}
	return ours
}

// detached are the mounts by which a client says that layers come later.
func detached(mounts []mount.Mount) []mount.Mount {
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"rw", "upperdir=" + mounts[0].Source}}}
}

// looks tells mode and owner of every file in a snapshot.
func looks(t *testing.T, s *Store, scope namespace.Scope, key string) map[string]string {
	t.Helper()
	root := treeOf(t, in(t, s, scope), key)
	defer root.Close()
	all := describe(t, int(root.Fd()))
	if err := tree.Walk(t.Context(), int(root.Fd()), func(e *tree.Entry) error {
		all[e.Path()] += fmt.Sprintf(" %o %d:%d", e.Stat.Mode, e.Stat.Uid, e.Stat.Gid)
		if e.Is(unix.S_IFDIR) {
			all[e.Path()] += fmt.Sprint(" ", e.Stat.Mtim)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestDetachedLayersFitTogether extracts layers in any order without those
// below, and puts them together at the commit.
func TestDetachedLayersFitTogether(t *testing.T) {
	sticky := difftest.Dir("tmp")
	sticky.Mode, sticky.Uid = 0o1777, 7
	sticky.PAXRecords = map[string]string{"SCHILY.xattr.user.looks": "copied"}
	private := difftest.Dir("root")
	private.Mode = 0o700
	full := difftest.Dir("full")
	layers := [][]byte{
		difftest.Tar(sticky, private, full, difftest.File("full/a", "1"), difftest.File("full/b", "2"), difftest.File("gone", "3"), difftest.File(".wh.base", "")),
		difftest.Tar(difftest.File("tmp/x", "x"), difftest.File("root/.profile", "p"), difftest.File(".wh.gone", ""),
			difftest.File("new/deep/er", "n"), difftest.File("new/.wh.never", ""), difftest.Dir("full"), difftest.File("full/.wh..wh..opq", ""), difftest.File("full/c", "4")),
		difftest.Tar(difftest.File("new/deep/more", "m"), difftest.File("full/.wh.c", ""), difftest.File("root/x/y", ""), difftest.File(".wh.nothing", "")),
	}
	blobs := difftest.NewBlobs()
	s := openBlobs(t, blobs)
	ordered, apart := in(t, s, one), in(t, s, two)
	for i, l := range slices.Backward(layers) {
		key := fmt.Sprint("layer", i)
		applyLayer(t, s, blobs, two, detached(prepare(t, apart, key, "")), l)
	}
	parent := ""
	for i, l := range layers {
		key, name := fmt.Sprint("layer", i), fmt.Sprint("name", i)
		applyLayer(t, s, blobs, one, prepare(t, ordered, key, parent), l)
		commitTo(t, ordered, name, key, "")
		commitTo(t, apart, name, key, parent)
		want, got := looks(t, s, one, name), looks(t, s, two, name)
		// A directory that has no entry and is new has the time it was made.
		for path := range want {
			if strings.HasPrefix(path, "new") || strings.HasPrefix(path, "root") || strings.HasPrefix(path, "tmp") || path == "full" {
				want[path], got[path] = strings.Split(want[path], " {")[0], strings.Split(got[path], " {")[0]
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("after layer %d (-in order +detached):\n%s", i, diff)
		}
		parent = name
	}
	if got := looks(t, s, two, "name2"); !strings.Contains(got["tmp"], "41777 7:0") || !strings.Contains(got["tmp"], "user.looks=copied") {
		t.Errorf("a directory that the layer only goes through is %q", got["tmp"])
	}
	// Nothing is left of what was only for the way.
	for id := range s.last.Load() {
		if found := findAttr(t, s.fs(id+1)); len(found) > 0 {
			t.Errorf("directory %d has marks: %v", id+1, found)
		}
	}
}

func findAttr(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		names := make([]byte, 10_000)
		if n, err := unix.Llistxattr(path, names); err == nil && strings.Contains(string(names[:n]), "trusted.gantry") {
			found = append(found, path)
		}
		return nil
	})
	return found
}

// TestDetachedLayerThroughALink cannot be put together, and says so.
func TestDetachedLayerThroughALink(t *testing.T) {
	blobs := difftest.NewBlobs()
	s := openBlobs(t, blobs)
	sn := in(t, s, one)
	applyLayer(t, s, blobs, one, prepare(t, sn, "base", ""), difftest.Tar(difftest.Dir("usr"), difftest.Dir("usr/lib"), difftest.Symlink("lib", "usr/lib")))
	commitTo(t, sn, "base done", "base", "")
	applyLayer(t, s, blobs, one, detached(prepare(t, sn, "top", "")), difftest.Tar(difftest.File("lib/new", "x"), difftest.File("tmp/y", "")))
	before := look(t, s, one, "top")
	err := sn.Commit(t.Context(), "top done", "top", snapshot.Options{Parent: "base done"})
	if !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Commit: %v, want %v", err, errdefs.ErrFailedPrecondition)
	}
	if diff := cmp.Diff(before, look(t, s, one, "top")); diff != "" {
		t.Errorf("the failed commit changed the snapshot (-want +got):\n%s", diff)
	}
}

// TestDetachedLayerThatDisplacesItself is fine where nothing comes below it.
func TestDetachedLayerThatDisplacesItself(t *testing.T) {
	onEach(t, func(t *testing.T, snapshotter string) {
		blobs := difftest.NewBlobs()
		s := openBlobsOn(t, snapshotter, blobs)
		sn := inOf(t, s, one, snapshotter)
		if !sn.d.Traits().Rebase {
			t.Skip("nothing is extracted detached")
		}
		for _, key := range []string{"base", "top"} {
			m := prepare(t, sn, key, "")
			if snapshotter == Overlayfs {
				m = detached(m)
			}
			applyLayer(t, s, blobs, one, m, difftest.Tar(difftest.Symlink("l", "/usr"), difftest.Dir("l"), difftest.File("l/f", key), difftest.File("d/e/f", ""), difftest.File("d", "")))
		}
		commitTo(t, sn, "base done", "base", "")
		err := sn.Commit(t.Context(), "top done", "top", snapshot.Options{Parent: "base done"})
		if !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("Commit: %v, want %v", err, errdefs.ErrFailedPrecondition)
		}
		commitTo(t, sn, "top alone", "top", "")
		for key, want := range map[string]string{"base done": "base", "top alone": "top"} {
			if diff := cmp.Diff(map[string]string{"d": "file ", "l": "dir", "l/f": "file " + want}, lookIn(t, sn, key)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", key, diff)
			}
		}
	})
}

// TestARebaseThatFailedFitsNoOtherParent: it has dropped what hid nothing in the
// parent that it was tried on.
func TestARebaseThatFailedFitsNoOtherParent(t *testing.T) {
	onEach(t, func(t *testing.T, snapshotter string) {
		disk := &badSync{Disk: driver.Files{}}
		blobs := difftest.NewBlobs()
		needs := quietNeeds(t)
		needs.Content = blobs
		cfg := configOf(t, snapshotter)
		s, err := open(cfg, needs, disk, kernel.New())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { s.Close() }()
		sn := inOf(t, s, one, snapshotter)
		if !sn.d.Traits().Rebase {
			t.Skip("it has its parent from the beginning")
		}
		for key, layer := range map[string][]byte{"a": difftest.Tar(difftest.File("a", "")), "b": difftest.Tar(difftest.File("b", ""))} {
			applyLayer(t, s, blobs, one, prepare(t, sn, key, ""), layer)
			commitTo(t, sn, key+" done", key, "")
		}
		m := prepare(t, sn, "top", "")
		if snapshotter == Overlayfs {
			m = detached(m)
		}
		applyLayer(t, s, blobs, one, m, difftest.Tar(difftest.File(".wh.a", ""), difftest.File(".wh.b", ""), difftest.File("c", "")))
		disk.bad = true
		if err := sn.Commit(t.Context(), "top done", "top", snapshot.Options{Parent: "a done"}); !errors.Is(err, errSync) {
			t.Errorf("Commit: %v, want %v", err, errSync)
		}
		disk.bad = false
		s.Close()
		if s, err = open(cfg, needs, disk, kernel.New()); err != nil {
			t.Fatal(err)
		}
		sn = inOf(t, s, one, snapshotter)
		if err := sn.Commit(t.Context(), "top done", "top", snapshot.Options{Parent: "b done"}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("Commit on another parent: %v, want %v", err, errdefs.ErrFailedPrecondition)
		}
		commitTo(t, sn, "top done", "top", "a done")
		if got := slices.Sorted(maps.Keys(lookIn(t, sn, "top done"))); !slices.Equal(got, []string{"c"}) {
			t.Errorf("it has %q", got)
		}
	})
}

// TestHostileDetachedLayers puts the corpus over its layers afterwards. Some
// cannot be, none does harm.
func TestHostileDetachedLayers(t *testing.T) {
	needRoot(t)
	canary := makeCanary(t)
	before := fingerprint(t, canary)
	blobs := difftest.NewBlobs()
	s := openBlobs(t, blobs)
	sn := in(t, s, one)
	put := func(data []byte, mediaType string) ocispec.Descriptor {
		d := digest.FromBytes(data)
		blobs.Put(one.Name, d, data)
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
	}
	base := difftest.Tar(difftest.Symlink("l", canary), difftest.Symlink("d", canary), difftest.Symlink("n", "/"), difftest.Dir("a"))
	for i, h := range difftest.Hostiles(canary) {
		if h.Slow && difftest.Raced {
			continue
		}
		if h.MediaType == "" {
			h.MediaType = ocispec.MediaTypeImageLayer
		}
		below, key := fmt.Sprint("below", i), fmt.Sprint("top", i)
		if h.Below == nil {
			h.Below = base
		}
		applyLayer(t, s, blobs, one, prepare(t, sn, below, ""), h.Below)
		commitTo(t, sn, below+" done", below, "")
		m := detached(prepare(t, sn, key, ""))
		_, err := s.Layers().In(one).Apply(t.Context(), put(h.Layer, h.MediaType), m, diff.ApplyOptions{})
		if h.Refused && h.Digest == "" && err == nil {
			t.Errorf("%s: accepted", h.Name)
		}
		err = sn.Commit(t.Context(), key+" done", key, snapshot.Options{Parent: below + " done"})
		if err != nil && !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("%s: Commit: %v", h.Name, err)
		}
		if after := fingerprint(t, canary); after != before {
			t.Fatalf("%s: the canary changed from\n%s\nto\n%s", h.Name, before, after)
		}
	}
}

// TestCommitWaitsForApply has both at work on one snapshot.
func TestCommitWaitsForApply(t *testing.T) {
	blobs := &slowBlobs{Blobs: difftest.NewBlobs(), reading: make(chan struct{}), goOn: make(chan struct{})}
	s := openBlobs(t, blobs)
	sn := in(t, s, one)
	mounts := prepare(t, sn, "key", "")
	archive := difftest.Tar(difftest.File("f", "x"))
	d := digest.FromBytes(archive)
	blobs.Put(one.Name, d, archive)
	applied := make(chan error, 1)
	go func() {
		layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(archive))}
		_, err := s.Layers().In(one).Apply(context.Background(), layer, mounts, diff.ApplyOptions{})
		applied <- err
	}()
	<-blobs.reading
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := sn.Commit(ctx, "name", "key", snapshot.Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Commit while a layer is extracted: %v, want to wait", err)
	}
	// A snapshot that is removed meanwhile is not taken away under the layer.
	if err := sn.Remove(t.Context(), "key"); err != nil {
		t.Fatal(err)
	}
	if err := s.empty(t.Context()); !errors.Is(err, errBusy) {
		t.Errorf("collecting: %v, want %v", err, errBusy)
	}
	close(blobs.goOn)
	if err := <-applied; err != nil {
		t.Errorf("Apply: %v", err)
	}
	if err := s.empty(t.Context()); err != nil {
		t.Errorf("collecting: %v", err)
	}
	if entries, _ := os.ReadDir(s.dir()); len(entries) > 0 {
		t.Errorf("left on disk: %v", entries)
	}
}

// slowBlobs waits in the middle.
type slowBlobs struct {
	*difftest.Blobs
	reading, goOn chan struct{}
}

func (b *slowBlobs) In(scope namespace.Scope) content.Store {
	return slowStore{Store: b.Blobs.In(scope), b: b}
}

type slowStore struct {
	content.Store
	b *slowBlobs
}

func (s slowStore) Open(ctx context.Context, d digest.Digest) (content.Reader, error) {
	close(s.b.reading)
	<-s.b.goOn
	return s.Store.Open(ctx, d)
}

// TestManyAtOnce prepares, extracts, commits and removes in parallel.
func TestManyAtOnce(t *testing.T) {
	blobs := difftest.NewBlobs()
	s := openBlobs(t, blobs)
	ctx, stop := context.WithCancel(t.Context())
	collected := make(chan error, 1)
	go func() { collected <- s.Collect(ctx) }()
	base := difftest.Tar(difftest.Dir("d"), difftest.File("d/f", "1"))
	sn := in(t, s, one)
	applyLayer(t, s, blobs, one, prepare(t, sn, "base-key", ""), base)
	commitTo(t, sn, "base", "base-key", "")
	const workers, rounds = 8, 10
	errs := make(chan error, workers)
	for w := range workers {
		go func() { errs <- oneOfMany(ctx, s, blobs, sn, w, rounds) }()
	}
	for range workers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	stop()
	if err := <-collected; err != nil {
		t.Errorf("Collect: %v", err)
	}
	var left []string
	for i, err := range sn.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, i.Name)
	}
	if diff := cmp.Diff([]string{"base"}, left); diff != "" {
		t.Errorf("snapshots (-want +got):\n%s", diff)
	}
	if err := s.empty(t.Context()); err != nil {
		t.Errorf("collecting: %v", err)
	}
	if entries, err := os.ReadDir(s.dir()); len(entries) != 1 || err != nil {
		t.Errorf("%d directories, %v, want one", len(entries), err)
	}
}

func oneOfMany(ctx context.Context, s *Store, blobs *difftest.Blobs, sn snapshot.Store, worker, rounds int) error {
	for i := range rounds {
		key := fmt.Sprintf("w%d-%d", worker, i)
		mounts, err := sn.Prepare(ctx, key, "base", snapshot.Options{})
		if err != nil {
			return err
		}
		archive := difftest.Tar(difftest.File("d/"+key, key), difftest.File("d/.wh.f", ""))
		d := digest.FromBytes(archive)
		blobs.Put(one.Name, d, archive)
		layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(archive))}
		if _, err := s.Layers().In(one).Apply(ctx, layer, mounts, diff.ApplyOptions{SyncFS: i == 0}); err != nil {
			return err
		}
		if err := sn.Commit(ctx, key+"-done", key, snapshot.Options{}); err != nil {
			return err
		}
		if _, err := sn.View(ctx, key, key+"-done", snapshot.Options{}); err != nil {
			return err
		}
		for _, name := range []string{key, key + "-done"} {
			if err := sn.Remove(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// TestUsageIsOfTheFiles measures real files.
func TestUsageIsOfTheFiles(t *testing.T) {
	blobs := difftest.NewBlobs()
	s := openBlobs(t, blobs)
	sn := in(t, s, one)
	mounts := prepare(t, sn, "key", "")
	archive := difftest.Tar(difftest.Dir("d"), difftest.File("d/f", strings.Repeat("x", 100_000)), difftest.Link("l", "d/f"), difftest.Symlink("s", "d"))
	applyLayer(t, s, blobs, one, mounts, archive)
	active, err := sn.Usage(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	// The root, d, the file that has two names, and s.
	if active.Inodes != 4 || active.Size < 100_000 || active.Size > 200_000 {
		t.Errorf("Usage: %+v, want 4 inodes of some 100 kB", active)
	}
	commitTo(t, sn, "name", "key", "")
	if err := os.WriteFile(filepath.Join(mounts[0].Source, "later"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := sn.Usage(t.Context(), "name"); err != nil || got.Inodes != 4 {
		t.Errorf("Usage of the committed: %+v, %v, want what it was at the commit", got, err)
	}
}

// TestMountsAreContainerds compares the mounts with those that containerd's
// clients know, word for word.
func TestMountsAreContainerds(t *testing.T) {
	s := openTest(t, testConfig(t), testNeeds(t))
	sn := in(t, s, one)
	got := map[string][]mount.Mount{"active": prepare(t, sn, "a0", "")}
	commitTo(t, sn, "base", "a0", "")
	got["active on one"] = prepare(t, sn, "a1", "base")
	commitTo(t, sn, "second", "a1", "")
	got["active on two"] = prepare(t, sn, "a2", "second")
	for name, parent := range map[string]string{"view": "", "view of one": "base", "view of two": "second"} {
		m, err := sn.View(t.Context(), name, parent, snapshot.Options{})
		if err != nil {
			t.Fatal(err)
		}
		got[name] = m
	}
	bind := func(id uint64, access string) []mount.Mount {
		return []mount.Mount{{Type: "bind", Source: s.fs(id), Options: []string{access, "rbind"}}}
	}
	over := func(options ...string) []mount.Mount {
		return []mount.Mount{{Type: "overlay", Source: "overlay", Options: append(options, kernel.OverlayOptions()...)}}
	}
	alone := got["view"][0].Source
	want := map[string][]mount.Mount{
		"active":        bind(1, "rw"),
		"active on one": over("workdir="+s.work(2), "upperdir="+s.fs(2), "lowerdir="+s.fs(1)),
		"active on two": over("workdir="+s.work(3), "upperdir="+s.fs(3), "lowerdir="+s.fs(2)+":"+s.fs(1)),
		"view":          {{Type: "bind", Source: alone, Options: []string{"ro", "rbind"}}},
		"view of one":   bind(1, "ro"),
		"view of two":   over("lowerdir=" + s.fs(2) + ":" + s.fs(1)),
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if diff := cmp.Diff(want[name], got[name]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
