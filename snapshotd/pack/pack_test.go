package pack

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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

// TestDiffThenApplyGivesTheTreeBack changes random trees at random. The layer of
// the difference, applied to the tree as it was, makes the tree as it is; and the
// layer of the whole tree makes it from nothing.
func TestDiffThenApplyGivesTheTreeBack(t *testing.T) {
	needRoot(t)
	for seed := range uint64(rounds) {
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
