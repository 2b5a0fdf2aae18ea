package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/snapshotd/tree"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: owners, devices and trusted attributes")
	}
}

// descriptor describes data.
func descriptor(data []byte, mediaType string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func reader(data []byte) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

// plainTree opens a directory as a target that stands alone.
func plainTree(t testing.TB, dir string) Target {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return Target{Own: f, Attr: "trusted.overlay."}
}

func apply(t testing.TB, archive []byte, to Target) error {
	t.Helper()
	_, err := Apply(t.Context(), descriptor(archive, ocispec.MediaTypeImageLayer), reader(archive), to)
	return err
}

func mustApply(t testing.TB, archive []byte, to Target) {
	t.Helper()
	if err := apply(t, archive, to); err != nil {
		t.Fatalf("Apply: %v", err)
	}
}

// TestEntriesAreAsTarMakesThem compares every attribute with those of the tree
// that GNU tar makes of the same archive.
func TestEntriesAreAsTarMakesThem(t *testing.T) {
	needRoot(t)
	at := func(e difftest.Entry, mode int64, uid, gid int, seconds int64) difftest.Entry {
		e.Mode, e.Uid, e.Gid = mode, uid, gid
		e.ModTime, e.AccessTime = time.Unix(seconds, 123_456_789), time.Unix(seconds+1, 0)
		e.Format = tar.FormatPAX
		return e
	}
	big := strings.Repeat("0123456789abcdef", 20_000)
	capable := at(difftest.File("usr/bin/ping", "elf"), 0o755, 0, 0, 7)
	capable.PAXRecords = map[string]string{
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"SCHILY.xattr.user.note":           "kept",
	}
	archive := difftest.Tar(
		at(difftest.Dir("."), 0o751, 1, 2, 1_600_000_000),
		at(difftest.Dir("usr"), 0o755, 0, 0, 1_000_000_000),
		at(difftest.Dir("usr/bin"), 0o2775, 10, 20, 1_100_000_000),
		at(difftest.File("usr/bin/su", "setuid"), 0o4755, 0, 42, 1_200_000_000),
		at(difftest.File("usr/bin/big", big), 0o640, 65534, 4294967294, -5),
		at(difftest.File("usr/bin/zeros", big+string(make([]byte, 300_000))+big), 0o000, 1000, 1000, 5),
		at(difftest.File("usr/bin/only-zeros", string(make([]byte, 300_000))), 0o600, 0, 0, 5),
		capable,
		at(difftest.File("empty", ""), 0o1777, 3, 4, 0),
		at(difftest.Symlink("usr/link", "../../nowhere"), 0o777, 5, 6, 1_300_000_000),
		at(difftest.Link("usr/bin/su2", "usr/bin/su"), 0o4755, 0, 42, 1_200_000_000),
		at(difftest.Node("fifo", tar.TypeFifo, 0, 0), 0o622, 7, 8, 1_400_000_000),
		at(difftest.Node("null", tar.TypeChar, 1, 3), 0o666, 0, 5, 1_500_000_000),
		at(difftest.Node("disk", tar.TypeBlock, 259, 70_000), 0o660, 0, 6, 1_500_000_000),
		at(difftest.Dir("tmp"), 0o1777, 0, 0, 1_150_000_000),
		at(difftest.File("usr/bin/later", "changes the directory"), 0o644, 0, 0, 2_000_000_000),
		at(difftest.File(strings.Repeat("long-name/", 20)+"f", ""), 0o644, 0, 0, 9),
	)
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	ours, theirs := t.TempDir(), t.TempDir()
	mustApply(t, archive, plainTree(t, ours))

	cmd := exec.Command("tar", "-xpf", "-", "-C", theirs, "--numeric-owner", "--same-owner", "--xattrs", "--xattrs-include=*", "--delay-directory-restore")
	cmd.Stdin = bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	got, want := stats(t, ours), stats(t, theirs)
	// tar does not know the times of directories it was not told of, nor we.
	for path := range want {
		if strings.HasPrefix(path, "long-name") && !strings.HasSuffix(path, "/f") {
			delete(want, path)
			delete(got, path)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the trees differ (-tar +ours):\n%s", diff)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(ours, "usr/bin/only-zeros"), &st); err != nil || st.Blocks > 16 {
		t.Errorf("a file of zeros has %d blocks, %v, want a hole", st.Blocks, err)
	}
}

// stats tells of every file below dir what can be told.
func stats(t *testing.T, dir string) map[string]string {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := make(map[string]string)
	add := func(path string, st *unix.Stat_t) {
		s := fmt.Sprintf("%o %d:%d links %d dev %x size %d mtime %v", st.Mode, st.Uid, st.Gid, st.Nlink, st.Rdev, st.Size, st.Mtim)
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			b, err := os.ReadFile(filepath.Join(dir, path))
			if err != nil {
				t.Fatal(err)
			}
			s += " " + digest.FromBytes(b).String()
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			target, _ := os.Readlink(filepath.Join(dir, path))
			s += " to " + target
		}
		for _, name := range []string{"security.capability", "user.note"} {
			b := make([]byte, 100)
			if n, err := unix.Lgetxattr(filepath.Join(dir, path), name, b); err == nil {
				s += fmt.Sprintf(" %s=%x", name, b[:n])
			}
		}
		all[path] = s
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	add(".", &st)
	if err := tree.Walk(t.Context(), int(f.Fd()), func(e *tree.Entry) error {
		add(e.Path(), &e.Stat)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestListsAreWorkedOffWhenLong extracts so many directories and whiteouts that
// neither list is kept to the end.
func TestListsAreWorkedOffWhenLong(t *testing.T) {
	needRoot(t)
	x := &extractor{}
	name := strings.Repeat("n", 200)
	for i := 0; !x.times.full(); i++ {
		if x.times.add(name, 1, &attributes{}); i > 100_000 {
			t.Fatal("100,000 directories are no long list")
		}
	}
	for i := 0; !x.whiteouts.full(); i++ {
		if x.whiteouts.add(name, name); i > 100_000 {
			t.Fatal("100,000 whiteouts are no long list")
		}
	}
	dir := t.TempDir()
	to := plainTree(t, dir)
	to.Overlay, to.Detached = true, true
	entries := []difftest.Entry{}
	long := strings.Repeat("d", 250)
	for i := range 5000 {
		// Each name is some 1 KiB: the lists are full several times.
		entries = append(entries, difftest.File(fmt.Sprintf("%s/%s/%s/%s/.wh.%d", long, long, long, long, i), ""))
	}
	entries = append(entries, difftest.File("last", ""))
	mustApply(t, difftest.Tar(entries...), to)
	var st unix.Stat_t
	for _, i := range []int{0, 2000, 4999} {
		err := unix.Lstat(filepath.Join(dir, long, long, long, long, fmt.Sprint(i)), &st)
		if err != nil || !isWhiteout(&st) {
			t.Errorf("whiteout %d: mode %o, %v", i, st.Mode, err)
		}
	}
	if err := unix.Lstat(filepath.Join(dir, "last"), &st); err != nil {
		t.Errorf("the file after the whiteouts: %v", err)
	}
}

// TestWhiteoutsInAFilledTree applies a layer to a tree that has files of its
// own from before.
func TestWhiteoutsInAFilledTree(t *testing.T) {
	needRoot(t)
	first := difftest.Tar(difftest.Dir("d"), difftest.File("d/old", "1"), difftest.Dir("d/s"), difftest.File("d/s/old", "2"), difftest.File("f", "3"), difftest.File("stays", "4"))
	second := difftest.Tar(
		difftest.File("d/new", "n"), difftest.Dir("d/s"), difftest.File("d/s/new", "n"), difftest.File("d/.wh..wh..opq", ""),
		difftest.File(".wh.f", ""), difftest.File(".wh.none", ""), difftest.File("g", "n"), difftest.File(".wh.g", ""))
	for _, overlay := range []bool{false, true} {
		dir := t.TempDir()
		to := plainTree(t, dir)
		to.Overlay = overlay
		mustApply(t, first, to)
		mustApply(t, second, to)
		want := []string{"d/", "d/new", "d/s/", "d/s/new", "g", "stays"}
		if overlay {
			want = []string{"d/", "d/new", "d/s/", "d/s/new", "f whiteout", "g", "none whiteout", "stays"}
		}
		if diff := cmp.Diff(want, listing(t, dir)); diff != "" {
			t.Errorf("overlay %t (-want +got):\n%s", overlay, diff)
		}
		b := make([]byte, 10)
		n, err := unix.Getxattr(filepath.Join(dir, "d"), "trusted.overlay.opaque", b)
		if opaque := err == nil && string(b[:n]) == "y"; opaque != overlay {
			t.Errorf("overlay %t: opaque is %t (%v)", overlay, opaque, err)
		}
	}
}

// TestAppliedTwice is a caller that tries again.
func TestAppliedTwice(t *testing.T) {
	needRoot(t)
	archive := difftest.Tar(difftest.Dir("d"), difftest.File("d/f", "1"), difftest.Link("d/l", "d/f"), difftest.Symlink("s", "d"),
		difftest.File("s/g", "2"), difftest.Node("p", tar.TypeFifo, 0, 0), difftest.File(".wh.x", ""), difftest.File("d/.wh..wh..opq", ""))
	dir := t.TempDir()
	to := plainTree(t, dir)
	mustApply(t, archive, to)
	once := listing(t, dir)
	mustApply(t, archive, to)
	if diff := cmp.Diff(once, listing(t, dir)); diff != "" {
		t.Errorf("the second time (-want +got):\n%s", diff)
	}
}

// listing returns the paths below dir, in order.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		switch {
		case d.IsDir():
			rel += "/"
		case isWhiteout(&st):
			rel += " whiteout"
		}
		all = append(all, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// racerRounds is how many entries go through the directory that is swapped, and
// how often it is, at least.
const racerRounds = 10_000

// TestRacer swaps a directory for a link out of the tree while layers go through
// it, which is CVE-2025-47290. A layer may fail; what is outside stays as it is.
func TestRacer(t *testing.T) {
	needRoot(t)
	outside := t.TempDir()
	for _, name := range []string{"f", "victim"} {
		if err := os.WriteFile(filepath.Join(outside, name), []byte("alive"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := listing(t, outside)
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Mkdirat(fd, "d", 0o755), unix.Symlinkat(outside, fd, "l")); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	swaps := make(chan int)
	go func() {
		n := 0
		for ; !stop.Load(); n++ {
			unix.Renameat2(fd, "d", fd, "l", unix.RENAME_EXCHANGE)
		}
		swaps <- n
	}()
	var layers [][]byte
	for _, entry := range []func(i int) difftest.Entry{
		func(i int) difftest.Entry { return difftest.File(fmt.Sprint("d/f", i), "evil") },
		func(int) difftest.Entry { return difftest.File("d/victim", "evil") },
		func(i int) difftest.Entry { return difftest.Dir(fmt.Sprint("d/sub", i)) },
		func(i int) difftest.Entry { return difftest.Symlink(fmt.Sprint("d/sym", i), "x") },
		func(i int) difftest.Entry { return difftest.Node(fmt.Sprint("d/node", i), tar.TypeFifo, 0, 0) },
		func(i int) difftest.Entry { return difftest.Link(fmt.Sprint("d/hard", i), "source") },
		func(int) difftest.Entry { return difftest.File("d/.wh.victim", "") },
		func(i int) difftest.Entry { return difftest.File(fmt.Sprintf("d/deep%d/er/f", i), "evil") },
	} {
		entries := []difftest.Entry{difftest.File("source", "")}
		for i := range 300 {
			// Another name each time: the directory is looked up again.
			entries = append(entries, entry(i), difftest.File(fmt.Sprint("x/", i), ""), difftest.File(".wh.none", ""))
		}
		layers = append(layers, difftest.Tar(entries...))
	}
	applied, rounds, want := 0, 0, racerRounds
	if difftest.Raced {
		want /= 10
	}
	for rounds < want {
		for _, l := range layers {
			// One that fails has gone through it once at least.
			rounds++
			if e := apply(t, l, plainTree(t, dir)); e != nil {
				err = e
				continue
			}
			applied++
			rounds += 300 - 1
		}
	}
	stop.Store(true)
	n := <-swaps
	t.Logf("%d rounds, %d layers applied, %d swaps, last error: %.300v", rounds, applied, n, err)
	if n < want {
		t.Errorf("swapped %d times, want at least %d", n, want)
	}
	if diff := cmp.Diff(before, listing(t, outside)); diff != "" {
		t.Errorf("the directory outside changed (-want +got):\n%s", diff)
	}
	for _, name := range before {
		if b, err := os.ReadFile(filepath.Join(outside, name)); string(b) != "alive" {
			t.Errorf("%s is %q, %v", name, b, err)
		}
	}
}

// TestMemory extracts layers that are large in each way, and looks how much
// memory that takes.
func TestMemory(t *testing.T) {
	needRoot(t)
	if difftest.Raced {
		t.Skip("the race detector takes memory of its own")
	}
	const limit = 64 << 20
	window, _ := difftest.Wide(25, 72<<20)
	peak := peakHeap(func() {
		if _, err := Apply(t.Context(), descriptor(window, ocispec.MediaTypeImageLayerZstd), reader(window), plainTree(t, t.TempDir())); err != nil {
			t.Error(err)
		}
	})
	if t.Logf("a window of 32 MiB: %d MiB", peak>>20); peak > limit {
		t.Errorf("a window of 32 MiB: %d MiB of memory, want at most %d", peak>>20, limit>>20)
	}
	for _, h := range difftest.Hostiles("/nowhere") {
		if len(h.Layer) < 1<<20 && !strings.Contains(h.Name, "sparse") {
			continue
		}
		if h.MediaType == "" {
			h.MediaType = ocispec.MediaTypeImageLayer
		}
		peak := peakHeap(func() {
			Apply(t.Context(), descriptor(h.Layer, h.MediaType), reader(h.Layer), plainTree(t, t.TempDir()))
		})
		if peak > limit {
			t.Errorf("%s: %d MiB of memory, want at most %d", h.Name, peak>>20, limit>>20)
		}
	}
}

// peakHeap returns by how much the heap grows at most while fn runs.
func peakHeap(fn func()) uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	base, peak := m.HeapInuse, m.HeapInuse
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapInuse)
			}
		}
	}()
	fn()
	close(done)
	<-ended
	return peak - base
}

// TestNothingIsLeft looks for goroutines and descriptors after layers that
// succeed, fail, and are given up.
func TestNothingIsLeft(t *testing.T) {
	needRoot(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	before := openFiles(t)
	for _, h := range difftest.Hostiles("/nowhere") {
		if len(h.Layer) > 1<<20 || strings.Contains(h.Name, "many") || strings.Contains(h.Name, "deep") || strings.Contains(h.Name, "giga") {
			continue
		}
		dir := t.TempDir()
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		opened := 0
		Apply(ctx, descriptor(h.Layer, ocispec.MediaTypeImageLayerGzip), func(ctx context.Context) (io.ReadCloser, error) {
			opened++
			return &slowCloser{Reader: bytes.NewReader(h.Layer), cancel: cancel, opened: &opened}, nil
		}, Target{Own: f})
		if opened != 0 {
			t.Errorf("%s: the blob was not closed", h.Name)
		}
		cancel()
		f.Close()
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d open files, want %d", after, before)
	}
}

// slowCloser gives up in the middle.
type slowCloser struct {
	*bytes.Reader
	cancel func()
	opened *int
}

func (s *slowCloser) Read(b []byte) (int, error) {
	if s.Reader.Len() < 1000 {
		s.cancel()
	}
	return s.Reader.Read(b[:min(len(b), 700)])
}

func (s *slowCloser) Close() error { *s.opened--; return nil }

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestReserve leaves the disk that is reserved alone, and nothing open: a tree
// that stays mounted is one that nobody else can use.
func TestReserve(t *testing.T) {
	needRoot(t)
	to := plainTree(t, t.TempDir())
	to.FreeMin = 1 << 60
	to.Root = func() (*os.File, error) { return reopen(to.Own) }
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	before := openFiles(t)
	defer func() {
		if after := openFiles(t); after != before {
			t.Errorf("%d files are open, want %d as before", after, before)
		}
	}()
	if err := apply(t, difftest.Tar(difftest.File("f", "x")), to); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("Apply: %v, want %v", err, errdefs.ErrResourceExhausted)
	}
}

// TestReadErrorIsNotTheLayers keeps the kind of what the content store says.
func TestReadErrorIsNotTheLayers(t *testing.T) {
	needRoot(t)
	archive := difftest.Gzip(difftest.Tar(difftest.File("f", strings.Repeat("x", 100_000))))
	broken := func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(archive[:100]), failing{})), nil
	}
	_, err := Apply(t.Context(), descriptor(archive, ocispec.MediaTypeImageLayerGzip), broken, plainTree(t, t.TempDir()))
	if !errors.Is(err, errdefs.ErrUnavailable) || errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Apply: %v, want %v", err, errdefs.ErrUnavailable)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errdefs.ErrUnavailable }

func TestCleanKeepsInside(t *testing.T) {
	for name, want := range map[string]string{
		"a": "a", "/a": "a", "./a/": "a", "a//b/./c": "a/b/c", "a/../b": "b", "": "", "/": "", ".": "", "a/..": "",
	} {
		if got, err := clean(name); got != want || err != nil {
			t.Errorf("clean(%q) = %q, %v, want %q", name, got, err, want)
		}
	}
	for _, name := range []string{"..", "../a", "a/../..", "/..", "a/../../b", "a\x00b", strings.Repeat("x", 5000)} {
		if got, err := clean(name); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("clean(%.20q) = %q, %v, want %v", name, got, err, errdefs.ErrInvalidArgument)
		}
	}
}
