package snapshotd

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/unpack"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
	"github.com/gantryd/gantry/snapshotd/tree"
)

// unsynced is a disk for tests that lose no power.
type unsynced struct{ driver.Disk }

func (unsynced) SyncFS(string) error { return nil }

// countingLog counts layers that were extracted in their place.
type countingLog struct {
	slog.Handler
	inPlace *atomic.Int64
}

func (countingLog) Enabled(context.Context, slog.Level) bool { return true }

func (c countingLog) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "a layer is extracted in its place" {
		c.inPlace.Add(1)
	}
	return nil
}

// TestUnpackIsApplyInOrder makes stacks of random layers, unpacks them together,
// and applies them one after the other. The trees are equal after every layer, or
// neither is accepted.
func TestUnpackIsApplyInOrder(t *testing.T) {
	needRoot(t)
	var inPlace atomic.Int64
	blobs := difftest.NewBlobs()
	needs := testNeeds(t)
	needs.Content, needs.Log = blobs, slog.New(countingLog{slog.DiscardHandler, &inPlace})
	s, err := open(testConfig(t), needs, unsynced{driver.Files{}}, kernel.New())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	stacks := uint64(200)
	if difftest.Raced {
		stacks /= 5
	}
	good, layers := uint64(0), 0
	seed := uint64(time.Now().UnixNano())
	for i := range stacks {
		n := i // the first are always the same
		if i >= stacks/2 {
			n = seed + i
		}
		stack := randomStack(rand.New(rand.NewPCG(n, 1)))
		if compareStack(t, s, blobs, fmt.Sprint(n), stack) {
			good++
		}
		layers += len(stack)
		if t.Failed() {
			t.Fatalf("stack %d:\n%s", n, describeStack(stack))
		}
	}
	t.Logf("%d of %d stacks were accepted; %d of %d layers extracted in their place", good, stacks, inPlace.Load(), layers)
	if good < stacks/3 || inPlace.Load() == 0 {
		t.Errorf("too few were accepted (%d), or done in their place (%d)", good, inPlace.Load())
	}
	wantTidy(t, s, "in the end")
}

func describeStack(stack [][]difftest.Entry) string {
	var b strings.Builder
	for i, l := range stack {
		fmt.Fprintf(&b, "layer %d\n", i)
		for _, e := range l {
			fmt.Fprintf(&b, "\t%c %q -> %q %o %d:%d %v %q\n", e.Typeflag, e.Name, e.Linkname, e.Mode, e.Uid, e.Gid, e.PAXRecords, e.Body)
		}
	}
	return b.String()
}

// compareStack returns whether a stack was accepted.
func compareStack(t *testing.T, s *Store, blobs *difftest.Blobs, name string, stack [][]difftest.Entry) bool {
	t.Helper()
	var layers []unpack.Layer
	for i, entries := range stack {
		// No two stacks have a layer in common.
		archive := difftest.Tar(append(slices.Clone(entries), difftest.File("stack", fmt.Sprint(name, i)))...)
		l := unpack.Layer{
			Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(archive), Size: int64(len(archive))},
			DiffID:     digest.FromBytes(archive),
		}
		blobs.Put(one.Name, l.Digest, archive)
		blobs.Put(two.Name, l.Digest, archive)
		layers = append(layers, l)
	}
	names, err := unpack.Names(layers)
	if err != nil {
		t.Fatal(err)
	}
	service, err := s.Unpacking().In(one, Overlayfs)
	if err != nil {
		t.Fatal(err)
	}
	together := unpack.Wait(service.Unpack(t.Context(), layers), nil)
	done, inOrder := applyInOrder(t, s, layers, names)
	if (together == nil) != (inOrder == nil) {
		t.Errorf("together: %v; in order: %v", together, inOrder)
		return false
	}
	if together != nil {
		return false
	}
	for i := range done {
		want, got := wholeLook(t, s, two.Name, names[i]), wholeLook(t, s, one.Name, names[i])
		for path, w := range want {
			// A directory without an entry has the time at which something was
			// put into it.
			if g, ok := got[path]; ok && w.recent {
				g.times, w.times = "", ""
				got[path], want[path] = g, w
			}
		}
		if d := cmp.Diff(want, got, cmp.AllowUnexported(seenEntry{}), cmp.FilterPath(func(p cmp.Path) bool {
			return p.Last().String() == ".recent"
		}, cmp.Ignore())); d != "" {
			t.Errorf("after layer %d (-in order +together):\n%s", i, d)
			return false
		}
	}
	return true
}

// applyInOrder is what clients of containerd do. It returns how many layers were
// applied.
func applyInOrder(t *testing.T, s *Store, layers []unpack.Layer, names []string) (int, error) {
	t.Helper()
	sn := in(t, s, two)
	parent := ""
	for i, l := range layers {
		key := "key " + names[i]
		_, err := s.Layers().In(two).Apply(t.Context(), l.Descriptor, prepare(t, sn, key, parent), diff.ApplyOptions{})
		if err != nil {
			return i, errors.Join(err, sn.Remove(t.Context(), key))
		}
		if err := sn.Commit(t.Context(), names[i], key, snapshot.Options{}); err != nil {
			return i, err
		}
		parent = names[i]
	}
	return len(layers), nil
}

// A seenEntry is what is seen of a file.
type seenEntry struct {
	what, owner, times string
	links              string // the first of its names, if it has several
	recent             bool   // a directory that was changed a moment ago
}

func wholeLook(t *testing.T, s *Store, ns, name string) map[string]seenEntry {
	t.Helper()
	scope := one
	scope.Name = ns
	root := treeOf(t, in(t, s, scope), name)
	defer root.Close()
	all := make(map[string]seenEntry)
	first := make(map[uint64]string)
	see := func(path, what string, st *unix.Stat_t) {
		e := seenEntry{what: what, owner: fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid), times: fmt.Sprint(st.Mtim)}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			e.recent = st.Mtim.Sec > difftest.Epoch.Unix()+1_000_000
		} else if st.Nlink > 1 {
			if _, ok := first[st.Ino]; !ok {
				first[st.Ino] = path
			}
			e.links = fmt.Sprint(first[st.Ino], " ", st.Nlink)
		}
		all[path] = e
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	see("", "root", &st)
	paths := describe(t, int(root.Fd()))
	stats := make(map[string]unix.Stat_t)
	if err := tree.Walk(t.Context(), int(root.Fd()), func(e *tree.Entry) error {
		stats[e.Path()] = e.Stat
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, path := range slices.Sorted(func(yield func(string) bool) {
		for p := range stats {
			if !yield(p) {
				return
			}
		}
	}) {
		st := stats[path]
		see(path, paths[path], &st)
	}
	return all
}

// randomStack makes layers of few names, so that they get in each other's way.
func randomStack(r *rand.Rand) [][]difftest.Entry {
	g := &layerMaker{r: r}
	stack := make([][]difftest.Entry, 2+r.IntN(3))
	for i := range stack {
		g.depth = i
		for range 2 + r.IntN(7) {
			stack[i] = append(stack[i], g.entry())
		}
	}
	return stack
}

type layerMaker struct {
	r     *rand.Rand
	depth int
	known []string // names that had an entry
	files []string // those of files
}

func (g *layerMaker) pick(names ...string) string { return names[g.r.IntN(len(names))] }

// name returns one of up to three parts, sometimes one that was there before.
func (g *layerMaker) name(leaf bool) string {
	if len(g.known) > 0 && g.r.IntN(6) == 0 {
		return g.pick(g.known...)
	}
	// Mostly directories are called a and b, and files e and f.
	parts := make([]string, 1+g.r.IntN(3))
	for i := range parts {
		if parts[i] = g.pick("a", "b"); g.r.IntN(12) == 0 {
			parts[i] = g.pick("c", "d", "e")
		}
	}
	if leaf {
		parts = append(parts, g.pick("c", "d", "e", "f"))
	}
	if g.r.IntN(20) == 0 {
		parts = append(parts, g.pick(".", "..", ""), g.pick("a", "b"))
	}
	return strings.Join(parts, "/")
}

func (g *layerMaker) entry() difftest.Entry {
	n := g.r.IntN(40)
	name := g.name(n < 13 || n >= 23)
	var e difftest.Entry
	switch {
	case n < 13:
		e = difftest.File(name, fmt.Sprint("from ", g.depth, g.r.IntN(100)))
	case n < 23:
		e = difftest.Dir(name)
		e.Mode = []int64{0o755, 0o700, 0o1777, 0o2775}[g.r.IntN(4)]
	case n < 27:
		e = difftest.Symlink(name, g.pick("/a", "b", "../c", "/d/a", "a/../b", "/"))
	case n < 30:
		from := g.name(true)
		if len(g.files) > 0 && g.r.IntN(10) > 0 {
			from = g.pick(g.files...)
		}
		e = difftest.Link(name, from)
	case n < 35:
		dir, base := splitName(name)
		e = difftest.File(dir+".wh."+base, "")
	case n < 37:
		dir, _ := splitName(name)
		e = difftest.File(dir+".wh..wh..opq", "")
	case n < 38:
		e = difftest.Dir(".")
	default:
		e = difftest.Node(name, tar.TypeFifo, 0, 0)
	}
	if !strings.Contains(e.Name, ".wh.") {
		if g.known = append(g.known, name); e.Typeflag == tar.TypeReg {
			g.files = append(g.files, name)
		}
		g.attributes(&e)
	}
	return e
}

func (g *layerMaker) attributes(e *difftest.Entry) {
	e.Uid, e.Gid = g.r.IntN(3), g.r.IntN(3)
	e.ModTime = difftest.Epoch.Add(time.Duration(g.r.IntN(1000)) * time.Second)
	if e.Typeflag != tar.TypeReg && e.Typeflag != tar.TypeDir {
		return
	}
	switch g.r.IntN(12) {
	case 0, 1:
		e.PAXRecords = map[string]string{"SCHILY.xattr.user." + g.pick("x", "y"): fmt.Sprint(g.depth)}
	case 2:
		if e.Typeflag == tar.TypeDir {
			e.PAXRecords = map[string]string{"SCHILY.xattr.system.posix_acl_default": accessList}
		}
	}
}

// accessList gives one more user read access.
const accessList = "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x04\x00\x07\x00\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff" +
	"\x10\x00\x05\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"

func splitName(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	return name[:i+1], name[i+1:]
}
