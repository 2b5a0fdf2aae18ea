package snapshotd

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

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
	"github.com/gantryd/gantry/snapshotd/kernel"
	"github.com/gantryd/gantry/snapshotd/pack"
)

// A layered store has the snapshots that clients make layers of: "base", "top" on
// it, and "active" on that.
type layered struct {
	*Store
	blobs *difftest.Blobs
	sn    snapshots
}

func openLayered(t *testing.T, blobs content.Stores) layered {
	t.Helper()
	s := openBlobs(t, blobs)
	l := layered{Store: s, sn: in(t, s, one)}
	switch b := blobs.(type) {
	case *difftest.Blobs:
		l.blobs = b
	case hooked:
		l.blobs = b.Blobs
	}
	applyLayer(t, s, l.blobs, one, prepare(t, l.sn, "1", ""), difftest.Tar(difftest.Dir("d"), difftest.File("d/a", "a"), difftest.File("d/b", "b")))
	commitTo(t, l.sn, "base", "1", "")
	applyLayer(t, s, l.blobs, one, prepare(t, l.sn, "2", "base"), difftest.Tar(difftest.Dir("d"), difftest.File("d/c", "c"), difftest.File("d/.wh.a", "")))
	commitTo(t, l.sn, "top", "2", "")
	applyLayer(t, s, l.blobs, one, prepare(t, l.sn, "active", "top"), difftest.Tar(difftest.File("new", "n")))
	return l
}

// view returns the mounts of a view.
func (l layered) view(t *testing.T, of string) []mount.Mount {
	t.Helper()
	m, err := l.sn.View(t.Context(), "view of "+of, of, snapshot.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (l layered) mounts(t *testing.T, key string) []mount.Mount {
	t.Helper()
	m, err := l.sn.Mounts(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// names makes a layer and lists what is in it.
func (l layered) names(t *testing.T, lower, upper []mount.Mount) []string {
	t.Helper()
	d, err := l.Layers().In(one).Diff(t.Context(), lower, upper, diff.DiffOptions{MediaType: ocispec.MediaTypeImageLayer})
	if err != nil {
		t.Fatalf("Diff: %v", err)
	}
	b, err := content.ReadAll(t.Context(), l.blobs.In(one), d.Digest, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return difftest.Names(b)
}

// usesUpper tells whether an upper directory is read instead of the trees.
func (l layered) usesUpper(t *testing.T, lower, upper []mount.Mount) bool {
	t.Helper()
	p, err := applier{l.Store, one}.pair(lower, upper)
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.upperDir()
	if err != nil {
		t.Fatal(err)
	}
	if f == nil {
		return false
	}
	f.Close()
	return true
}

// TestDiffOfWhatClientsCompare has the pairs of mounts that containerd's client
// asks for: a view of the parent, and a view of a snapshot, or the mounts of one
// that is active.
func TestDiffOfWhatClientsCompare(t *testing.T) {
	l := openLayered(t, difftest.NewBlobs())
	base, top, active := l.view(t, "base"), l.view(t, "top"), l.mounts(t, "active")
	empty := l.view(t, "")
	for _, c := range []struct {
		what         string
		lower, upper []mount.Mount
		upperAlone   bool
		want         []string
	}{
		{"the first layer", nil, base, false, []string{"d/", "d/a", "d/b"}},
		{"the first layer, on a view of nothing", empty, base, false, []string{"d/", "d/a", "d/b"}},
		{"the second layer", base, top, true, []string{"d/", "d/.wh.a", "d/c"}},
		{"what is active", top, active, true, []string{"new"}},
		{"two layers", base, active, false, []string{"d/", "d/.wh.a", "d/c", "new"}},
		{"everything", nil, active, false, []string{"d/", "d/b", "d/c", "new"}},
		{"the way back", top, base, false, []string{"d/", "d/a", "d/.wh.c"}},
		{"nothing", top, top, false, nil},
	} {
		if diff := cmp.Diff(c.want, l.names(t, c.lower, c.upper)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.what, diff)
		}
		if got := l.usesUpper(t, c.lower, c.upper); got != c.upperAlone {
			t.Errorf("%s: the upper directory alone is read: %t", c.what, got)
		}
	}
	// An upper directory that is not as we mount it is left.
	dir := ""
	for _, o := range active[0].Options {
		if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
			dir = upper
		}
	}
	err := errors.Join(os.Mkdir(dir+"/moved", 0o755), unix.Setxattr(dir+"/moved", kernel.OverlayAttrs()+"redirect", []byte("/d"), 0))
	if err != nil {
		t.Fatal(err)
	}
	if got := l.names(t, top, active); !slices.Contains(got, "moved/") {
		t.Errorf("of a directory with a redirect: %q", got)
	}
}

// TestDiffReadsNothingElse describes the host below, which does not count.
func TestDiffReadsNothingElse(t *testing.T) {
	l := openLayered(t, difftest.NewBlobs())
	host := t.TempDir()
	if err := os.WriteFile(host+"/canary", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	lie := l.mounts(t, "active")
	for i, o := range lie[0].Options {
		if strings.HasPrefix(o, "lowerdir=") {
			lie[0].Options[i] = "lowerdir=" + host
		}
	}
	if diff := cmp.Diff([]string{"d/", "d/b", "d/c", "new"}, l.names(t, nil, lie)); diff != "" {
		t.Errorf("of mounts that lie (-want +got):\n%s", diff)
	}
}

// hooked blobs call a function before the first bytes of an ingest are written.
type hooked struct {
	*difftest.Blobs
	before *func()
}

func (h hooked) In(scope namespace.Scope) content.Store {
	return hookedStore{h.Blobs.In(scope), h.before}
}

type hookedStore struct {
	content.Store
	before *func()
}

func (s hookedStore) Writer(ctx context.Context, o content.WriterOptions) (content.Writer, error) {
	w, err := s.Store.Writer(ctx, o)
	return hookedWriter{w, s.before}, err
}

type hookedWriter struct {
	content.Writer
	before *func()
}

func (w hookedWriter) Write(b []byte) (int, error) {
	(*w.before)()
	return w.Writer.Write(b)
}

// TestDiffOfWhatIsRemovedMakesNothing removes a snapshot while it is read.
func TestDiffOfWhatIsRemovedMakesNothing(t *testing.T) {
	before := func() {}
	l := openLayered(t, hooked{difftest.NewBlobs(), &before})
	upper := l.mounts(t, "active")
	before = func() {
		if err := l.sn.Remove(t.Context(), "active"); err != nil {
			t.Error(err)
		}
	}
	_, err := l.Layers().In(one).Diff(t.Context(), nil, upper, diff.DiffOptions{})
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Diff: %v, want %v", err, errdefs.ErrNotFound)
	}
	for info := range l.blobs.In(one).List(t.Context()) {
		t.Errorf("there is the blob %v", info.Digest)
	}
	if all, err := l.blobs.In(one).ListStatuses(t.Context()); len(all) > 0 || err != nil {
		t.Errorf("ingests are left: %v, %v", all, err)
	}
}

// TestDiffsOfEachOtherEnd compares two active snapshots in both directions at
// once.
func TestDiffsOfEachOtherEnd(t *testing.T) {
	l := openLayered(t, difftest.NewBlobs())
	a, b := l.mounts(t, "active"), prepare(t, l.sn, "other", "top")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			lower, upper := a, b
			if i%2 == 0 {
				lower, upper = b, a
			}
			if _, err := l.Layers().In(one).Diff(t.Context(), lower, upper, diff.DiffOptions{}); err != nil {
				t.Errorf("Diff: %v", err)
			}
		})
	}
	wg.Wait()
}

// TestContentStoreThatIsAwayIsAnError stops at each step that has to do with it.
func TestContentStoreThatIsAwayIsAnError(t *testing.T) {
	for _, step := range []string{"Writer", "Truncate", "Write", "Commit", "Info"} {
		t.Run(step, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i, err := newIngest(t.Context(), silent{difftest.NewBlobs().In(one), step}, "")
				if err == nil {
					defer i.close()
					_, err = i.Write([]byte("a layer"))
				}
				if err == nil {
					_, err = i.commit(nil, digest.FromString("uncompressed"))
				}
				if !errors.Is(err, errdefs.ErrUnavailable) {
					t.Errorf("%v, want %v", err, errdefs.ErrUnavailable)
				}
			})
		})
	}
}

// silent is a content store that does not answer to one method.
type silent struct {
	content.Store
	method string
}

func (s silent) answer(ctx context.Context, method string) error {
	if s.method != method {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (s silent) Writer(ctx context.Context, o content.WriterOptions) (content.Writer, error) {
	if err := s.answer(ctx, "Writer"); err != nil {
		return nil, err
	}
	w, err := s.Store.Writer(ctx, o)
	return silentWriter{w, s, ctx}, err
}

func (s silent) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	if err := s.answer(ctx, "Info"); err != nil {
		return content.Info{}, err
	}
	return s.Store.Info(ctx, d)
}

type silentWriter struct {
	content.Writer
	s   silent
	ctx context.Context
}

func (w silentWriter) Truncate(ctx context.Context, size int64) error {
	if err := w.s.answer(ctx, "Truncate"); err != nil {
		return err
	}
	return w.Writer.Truncate(ctx, size)
}

func (w silentWriter) Write(b []byte) (int, error) {
	if err := w.s.answer(w.ctx, "Write"); err != nil {
		return 0, err
	}
	return w.Writer.Write(b)
}

func (w silentWriter) Commit(ctx context.Context, size int64, d digest.Digest, labels map[string]string) error {
	if err := w.s.answer(ctx, "Commit"); err != nil {
		return err
	}
	return w.Writer.Commit(ctx, size, d, labels)
}

// TestALayerHasALimitOfTime of its own, which is not the caller's.
func TestALayerHasALimitOfTime(t *testing.T) {
	s := openBlobs(t, difftest.NewBlobs())
	mounts := prepare(t, in(t, s, one), "key", "")
	p, err := applier{s, one}.pair(nil, mounts)
	if err != nil {
		t.Fatal(err)
	}
	format, err := pack.FormatOf("")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.within(t.Context(), 0, format, diff.DiffOptions{}); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("without time: %v, want %v", err, errdefs.ErrResourceExhausted)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.within(ctx, 0, format, diff.DiffOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("of a caller who has gone: %v, want %v", err, context.Canceled)
	}
}
