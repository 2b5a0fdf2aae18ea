package pack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/snapshotd/changes"
	"github.com/gantryd/gantry/snapshotd/layer"
)

var plain = Format{MediaType: ocispec.MediaTypeImageLayer}

func write(t testing.TB, f Format, trees changes.Trees) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := Write(t.Context(), &b, f, trees, nil); err != nil {
		t.Fatalf("Write: %v", err)
	}
	return b.Bytes()
}

// apply extracts a layer into a directory.
func apply(t testing.TB, mediaType string, data []byte, dir *os.File) layer.Result {
	t.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	open := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	res, err := layer.Apply(t.Context(), desc, open, layer.Target{Own: dir})
	if err != nil {
		t.Fatalf("Apply: %v", err)
	}
	return res
}

// entries lists an archive.
func entries(t testing.TB, data []byte) []string {
	t.Helper()
	var all []string
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%c %s %s", h.Typeflag, h.Name, h.Linkname))
	}
}

// rounds is how many random trees are tried.
const rounds = 200

// seeds are those of the random trees: all, but under the race detector every
// fifth, from any of the first on.
func seeds() iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		first, step := uint64(0), uint64(1)
		if difftest.Raced {
			first, step = rand.Uint64N(5), 5
		}
		for seed := first; seed < rounds && yield(seed); seed += step {
		}
	}
}

// TestDiffThenApplyGivesTheTreeBack changes random trees at random. The layer of
// the difference, applied to the tree as it was, makes the tree as it is; and the
// layer of the whole tree makes it from nothing.
func TestDiffThenApplyGivesTheTreeBack(t *testing.T) {
	needRoot(t)
	for seed := range seeds() {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			lower := t.TempDir()
			tend(t, 2*seed, lower, 40)
			upper, again := clone(t, lower), clone(t, lower)
			tend(t, 2*seed+1, upper, 1+int(seed%40))
			trees := changes.Trees{Lower: open(t, lower), Upper: open(t, upper)}
			data := write(t, plain, trees)
			apply(t, ocispec.MediaTypeImageLayer, data, open(t, again))
			if diff := cmp.Diff(describe(t, trees.Upper), describe(t, open(t, again))); diff != "" {
				t.Errorf("the tree (-want +got):\n%s\nlayer:\n%q", diff, entries(t, data))
			}
			if !bytes.Equal(write(t, plain, trees), data) {
				t.Error("the second layer is another")
			}
			nothing := open(t, t.TempDir())
			apply(t, ocispec.MediaTypeImageLayer, write(t, plain, changes.Trees{Upper: trees.Upper}), nothing)
			if diff := cmp.Diff(describe(t, trees.Upper), describe(t, nothing)); diff != "" {
				t.Errorf("the tree from nothing (-want +got):\n%s", diff)
			}
		})
	}
}

// TestLayerIsTheSameInEachFormat has one archive in three forms.
func TestLayerIsTheSameInEachFormat(t *testing.T) {
	needRoot(t)
	upper := t.TempDir()
	tend(t, 1, upper, 80)
	trees := changes.Trees{Upper: open(t, upper)}
	archive := write(t, plain, trees)
	for _, mediaType := range []string{"", ocispec.MediaTypeImageLayerZstd} {
		f, err := FormatOf(mediaType)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		d, err := Write(t.Context(), &b, f, trees, nil)
		if err != nil || d != digest.FromBytes(archive) {
			t.Errorf("%s: %v, %v, want %v", f.MediaType, d, err, digest.FromBytes(archive))
		}
		if res := apply(t, f.MediaType, b.Bytes(), open(t, t.TempDir())); res.DiffID != d {
			t.Errorf("%s: applied as %v, want %v", f.MediaType, res.DiffID, d)
		}
		if again := write(t, f, trees); !bytes.Equal(again, b.Bytes()) {
			t.Errorf("%s: the second layer is another", f.MediaType)
		}
	}
}

// TestLayerSaysNothingThatNobodyAskedFor looks at the headers.
func TestLayerSaysNothingThatNobodyAskedFor(t *testing.T) {
	lower, upper := t.TempDir(), t.TempDir()
	at := time.Unix(1_700_000_000, 0)
	for _, path := range []string{lower + "/gone", upper + "/plain", upper + "/fraction", upper + "/" + strings.Repeat("l", 120)} {
		if err := errors.Join(os.WriteFile(path, []byte("x"), 0o644), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(upper+"/fraction", at, at.Add(time.Nanosecond)); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		".wh.gone":               "1970-01-01T00:00:00Z map[]",
		"plain":                  "2023-11-14T22:13:20Z map[]",
		"fraction":               "2023-11-14T22:13:20.000000001Z map[mtime:1700000000.000000001]",
		strings.Repeat("l", 120): "2023-11-14T22:13:20Z map[path:" + strings.Repeat("l", 120) + "]",
	}
	got := make(map[string]string)
	r := tar.NewReader(bytes.NewReader(write(t, plain, changes.Trees{Lower: open(t, lower), Upper: open(t, upper)})))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uname != "" || h.Gname != "" || !h.AccessTime.IsZero() || !h.ChangeTime.IsZero() {
			t.Errorf("%q: %v", h.Name, h)
		}
		got[h.Name] = fmt.Sprint(h.ModTime.UTC().Format(time.RFC3339Nano), " ", h.PAXRecords)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	latest := at.Add(-time.Hour)
	var b bytes.Buffer
	if _, err := Write(t.Context(), &b, plain, changes.Trees{Upper: open(t, upper)}, &latest); err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || !h.ModTime.Equal(latest) || len(h.PAXRecords) > 1 {
			t.Fatalf("%v: %v", h, err)
		}
	}
}

// TestNothingIsWrittenWhereTheUpperDirectoryIsNotClear lets the caller go on with
// the same writer.
func TestNothingIsWrittenWhereTheUpperDirectoryIsNotClear(t *testing.T) {
	needRoot(t)
	lower, upper := t.TempDir(), t.TempDir()
	err := errors.Join(os.Mkdir(upper+"/d", 0o755), unix.Setxattr(upper+"/d", overlayAttr+"redirect", []byte("/x"), 0))
	if err != nil {
		t.Fatal(err)
	}
	for _, mediaType := range []string{"", ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerZstd} {
		f, _ := FormatOf(mediaType)
		var b bytes.Buffer
		_, err := Write(t.Context(), &b, f, changes.Trees{Lower: open(t, lower), Upper: open(t, upper), Overlay: overlayAttr}, nil)
		if !errors.Is(err, changes.ErrUnclear) || b.Len() > 0 {
			t.Errorf("%s: %d bytes, %v", f.MediaType, b.Len(), err)
		}
	}
}

// failing is a writer that has room for so many bytes.
type failing struct{ room int }

var errFull = errors.New("full")

func (f *failing) Write(b []byte) (int, error) {
	if f.room -= len(b); f.room < 0 {
		return 0, errFull
	}
	return len(b), nil
}

// TestWriterThatFailsEndsIt fails at every place, and leaves no goroutine.
func TestWriterThatFailsEndsIt(t *testing.T) {
	needRoot(t)
	upper := t.TempDir()
	random := make([]byte, 9<<20)
	rand.NewChaCha8([32]byte{}).Read(random)
	if err := os.WriteFile(upper+"/random", random, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, mediaType := range []string{"", ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerZstd} {
		f, _ := FormatOf(mediaType)
		for _, room := range []int{0, 1000, 1 << 20, 2 << 20} {
			if _, err := Write(t.Context(), &failing{room}, f, changes.Trees{Upper: open(t, upper)}, nil); !errors.Is(err, errFull) {
				t.Errorf("%s with room for %d: %v", f.MediaType, room, err)
			}
		}
	}
	goleak.VerifyNone(t)
}

// TestNothingOfTheHostGetsIn swaps a directory with a link out of the tree while
// layers are made.
func TestNothingOfTheHostGetsIn(t *testing.T) {
	outside, upper := t.TempDir(), t.TempDir()
	var err error
	for i := range 30 {
		err = errors.Join(err, os.WriteFile(fmt.Sprintf("%s/%02d", outside, i), []byte("canary"), 0o600))
	}
	err = errors.Join(err, os.CopyFS(upper+"/d", os.DirFS(outside)), os.Symlink(outside, upper+"/link"))
	for i := range 30 {
		err = errors.Join(err, os.WriteFile(fmt.Sprintf("%s/d/%02d", upper, i), []byte("inside"), 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, upper+"/d", unix.AT_FDCWD, upper+"/link", unix.RENAME_EXCHANGE)
			}
		}
	}()
	aborted := 0
	for range 200 {
		var b bytes.Buffer
		_, err := Write(t.Context(), &b, plain, changes.Trees{Upper: open(t, upper)}, nil)
		if errors.Is(err, errdefs.ErrAborted) {
			aborted++
		} else if err != nil {
			t.Errorf("Write: %v", err)
		}
		if bytes.Contains(b.Bytes(), []byte("canary")) {
			t.Fatal("a file of the host is in the layer")
		}
	}
	close(stop)
	<-stopped
	t.Logf("%d of 200 did not stand still", aborted)
}
