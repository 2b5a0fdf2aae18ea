package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/unpack"
)

// spoil changes bytes of a file in their place, as a disk does: its size and its
// times are as before.
func spoil(t *testing.T, path string) {
	t.Helper()
	fi, err := os.Stat(path)
	must(t, err)
	b, err := os.ReadFile(path)
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.WriteFile(path, b, 0o600))
	must(t, os.Chtimes(path, fi.ModTime(), fi.ModTime()))
}

// TestADeepCheckFindsBytesThatChanged: of a tree that looks as it did, by its
// path. A repair has the bytes again.
func TestADeepCheckFindsBytesThatChanged(t *testing.T) {
	blobs := difftest.NewBlobs()
	s := openBlobs(t, blobs)
	sn := in(t, s, one)
	var many []difftest.Entry
	for i := range differencesMax + 5 {
		many = append(many, difftest.File(fmt.Sprintf("dir/%02d", i), "some bytes"))
	}
	applyLayer(t, s, blobs, one, prepare(t, sn, "key", ""), difftest.Tar(many...))
	commitTo(t, sn, "base", "key", "")
	applyLayer(t, s, blobs, one, prepare(t, sn, "key", "base"), difftest.Tar(difftest.File("other", "more bytes"), difftest.File("dir/.wh.00", "")))
	commitTo(t, sn, "top", "key", "")
	m := prepare(t, sn, "key", "top")
	applyLayer(t, s, blobs, one, m, difftest.Tar(difftest.File("third", "bytes")))
	write(t, m, "past the layer")
	commitTo(t, sn, "written", "key", "")
	deep := fsck.Options{Deep: true}
	if got := findings(t, s, deep); len(got) > 0 {
		t.Fatalf("of what is whole is found %+v", got)
	}
	spoil(t, filepath.Join(s.fs(1), "dir/07"))
	spoil(t, filepath.Join(s.fs(3), "third"))
	if got := findings(t, s, fsck.Options{}); len(got) > 0 {
		t.Errorf("what is not read is found %+v", got)
	}
	got := findings(t, s, fsck.Options{Deep: true, Rate: 10 << 20})
	if f := got["differs overlayfs/one/base"]; f.Severity != fsck.Loss || !strings.HasSuffix(f.Why, `makes: "/dir/07": contents`) {
		t.Errorf("of base is found %+v", f)
	}
	if f := got["differs overlayfs/one/written"]; !strings.HasSuffix(f.Why, `makes: "/third": contents`) || len(got) != 2 {
		t.Errorf("of written is found %+v, in all %+v", f, got)
	}
	if got := findings(t, s, fsck.Options{Only: []string{"overlayfs/one/top"}}); len(got) > 0 {
		t.Errorf("of top is found %+v", got)
	}
	for i := range differencesMax + 5 {
		must(t, os.Chmod(filepath.Join(s.fs(1), fmt.Sprintf("dir/%02d", i)), 0o600))
	}
	f := findings(t, s, fsck.Options{Deep: true, Repair: true})["changed overlayfs/one/base"]
	if f.Done == "" || !strings.Contains(f.Why, `"/dir/07": mode, contents`) || !strings.Contains(f.Why, "and 5 more") {
		t.Errorf("the repair of base says %+v", f)
	}
	if _, ok := findings(t, s, deep)["differs overlayfs/one/base"]; ok || look(t, s, one, "base")["dir/07"] == "" {
		t.Error("base is not what it was")
	}
	findings(t, s, fsck.Options{Repair: true, Only: []string{"overlayfs/1"}}) // the quarantined one goes
	wantTidy(t, s, "in the end")
}

// TestADeepCheckFindsNothingInWhatIsUnpacked, of layers as they come, and says of
// what it could not compare.
func TestADeepCheckFindsNothingInWhatIsUnpacked(t *testing.T) {
	onEach(t, func(t *testing.T, snapshotter string) {
		blobs := difftest.NewBlobs()
		s := openBlobsOn(t, snapshotter, blobs)
		service, err := s.Unpacking().In(one, snapshotter)
		must(t, err)
		for i := range uint64(10) {
			var layers []unpack.Layer
			for n, entries := range randomStack(rand.New(rand.NewPCG(i, 1))) {
				archive := difftest.Tar(append(entries, difftest.File("stack", fmt.Sprint(i, n)))...)
				d := digest.FromBytes(archive)
				blobs.Put(one.Name, d, archive)
				layers = append(layers, unpack.Layer{
					Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(archive))}, DiffID: d,
				})
			}
			_ = unpack.Wait(service.Unpack(t.Context(), layers), nil) // some cannot be
		}
		all := 0
		for i, err := range inOf(t, s, one, snapshotter).List(t.Context()) {
			must(t, err)
			if i.Kind == snapshot.Committed {
				all++
			}
		}
		if got := findings(t, s, fsck.Options{Deep: true}); len(got) > 0 || all < 10 {
			t.Errorf("of %d snapshots is found %+v", all, got)
		}
		wantTidy(t, s, "in the end")
		s.needs.Content = difftest.NewBlobs()
		got := findings(t, s, fsck.Options{Deep: true})
		if f := got["uncompared "]; len(got) != 1 || f.Severity != fsck.Note || !strings.HasPrefix(f.Why, fmt.Sprint(all, " snapshots")) {
			t.Errorf("without blobs is found %+v, of %d", got, all)
		}
	})
}

// opened calls somebody when a blob is opened.
type opened struct {
	content.Stores
	call func()
}

func (o opened) In(scope namespace.Scope) content.Store { return openedIn{o.Stores.In(scope), o.call} }

type openedIn struct {
	content.Store
	call func()
}

func (o openedIn) Open(ctx context.Context, d digest.Digest) (content.Reader, error) {
	o.call()
	return o.Store.Open(ctx, d)
}

// TestADeepCheckThatEndsEarlyLeavesNothing: no tree, and nobody who waits.
func TestADeepCheckThatEndsEarlyLeavesNothing(t *testing.T) {
	blobs := difftest.NewBlobs()
	s := openBlobs(t, blobs)
	sn := in(t, s, one)
	applyLayer(t, s, blobs, one, prepare(t, sn, "key", ""), difftest.Tar(difftest.File("file", "some bytes")))
	commitTo(t, sn, "base", "key", "")
	spoil(t, filepath.Join(s.fs(1), "file"))
	for range s.Check(t.Context(), fsck.Options{Deep: true}) {
		break
	}
	for at := range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		count := 0
		s.needs.Content = opened{blobs, func() {
			if count++; count > at {
				cancel()
			}
		}}
		var last error
		for _, err := range s.Check(ctx, fsck.Options{Deep: true}) {
			last = err
		}
		if cancel(); !errors.Is(last, context.Canceled) || count != at+1 {
			t.Errorf("a check that is ended at blob %d ends with %v at %d", at, last, count)
		}
	}
	s.needs.Content = blobs
	if got := findings(t, s, fsck.Options{Deep: true}); len(got) != 1 || len(dirs(t, s)) != 1 {
		t.Errorf("after all is found %+v, in %q", got, dirs(t, s))
	}
}
