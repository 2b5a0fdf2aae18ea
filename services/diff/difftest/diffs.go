package difftest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
)

// change is an archive that changes [sample], in each way that trees in memory
// know.
var change = Tar(
	File("etc/hostname", "another\n"), File("etc/.wh.link", ""), File("new", "n"), Dir("empty"),
	File(".wh.no", ""), Symlink("usr/lib/link", "../.."), File("usr/lib/libc.so.6", "alone"),
)

func (s suite) diff(t *testing.T, lower, upper []mount.Mount, o diff.DiffOptions) ocispec.Descriptor {
	t.Helper()
	d, err := s.Services.In(one).Diff(t.Context(), lower, upper, o)
	if err != nil {
		t.Fatalf("Diff: %v", err)
	}
	return d
}

// archive returns the uncompressed bytes of a layer of gzip or of none.
func (s suite) archive(t *testing.T, d ocispec.Descriptor) []byte {
	t.Helper()
	b, err := content.ReadAll(t.Context(), s.blobs.In(one), d.Digest, 1<<20)
	if err != nil {
		t.Fatalf("ReadAll: %v", err)
	}
	if int64(len(b)) != d.Size {
		t.Errorf("the layer has %d bytes, and its descriptor says %d", len(b), d.Size)
	}
	if d.MediaType == ocispec.MediaTypeImageLayer {
		return b
	}
	if b, err = unpack(b); err != nil {
		t.Fatalf("the layer does not decompress: %v", err)
	}
	return b
}

func made(t *testing.T, s suite) {
	for _, mediaType := range []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd} {
		for _, below := range [][][]byte{nil, {sample}} {
			var under []mount.Mount
			if len(below) > 0 {
				under = s.Tree(t, one, below...).Mounts
			}
			upper := s.Tree(t, one, sample, change)
			d := s.diff(t, under, upper.Mounts, diff.DiffOptions{MediaType: mediaType})
			again := s.Tree(t, one, below...)
			if _, err := s.apply(t, d, again.Mounts); err != nil {
				t.Fatalf("Apply: %v", err)
			}
			if diff := cmp.Diff(upper.Files(t), again.Files(t)); diff != "" {
				t.Errorf("%s on %d layers (-want +got):\n%s", mediaType, len(below), diff)
			}
		}
	}
}

func unchanged(t *testing.T, s suite) {
	tree := s.Tree(t, one, sample)
	d := s.diff(t, tree.Mounts, tree.Mounts, diff.DiffOptions{})
	if h, err := tar.NewReader(bytes.NewReader(s.archive(t, d))).Next(); !errors.Is(err, io.EOF) {
		t.Errorf("the layer of no difference has %v, %v", h, err)
	}
}

func mediaTypes(t *testing.T, s suite) {
	tree := s.Tree(t, one, sample)
	for asked, want := range map[string]string{
		"":                              ocispec.MediaTypeImageLayerGzip,
		ocispec.MediaTypeImageLayer:     ocispec.MediaTypeImageLayer,
		ocispec.MediaTypeImageLayerGzip: ocispec.MediaTypeImageLayerGzip,
		ocispec.MediaTypeImageLayerZstd: ocispec.MediaTypeImageLayerZstd,

		"application/vnd.docker.image.rootfs.diff.tar":      ocispec.MediaTypeImageLayer,
		"application/vnd.docker.image.rootfs.diff.tar.gzip": ocispec.MediaTypeImageLayerGzip,
		"application/vnd.docker.image.rootfs.diff.tar.zstd": ocispec.MediaTypeImageLayerZstd,
	} {
		d := s.diff(t, nil, tree.Mounts, diff.DiffOptions{MediaType: asked})
		if d.MediaType != want {
			t.Errorf("asked for %q: it is %q, want %q", asked, d.MediaType, want)
		}
		again := s.Tree(t, one)
		applied, err := s.apply(t, d, again.Mounts)
		if err != nil {
			t.Fatalf("Apply: %v", err)
		}
		info, err := s.blobs.In(one).Info(t.Context(), d.Digest)
		if err != nil {
			t.Fatalf("Info: %v", err)
		}
		uncompressed := applied.Digest.String()
		if want == ocispec.MediaTypeImageLayer {
			uncompressed = ""
		}
		if got := info.Labels[diff.LabelUncompressed]; got != uncompressed {
			t.Errorf("asked for %q: the label of the uncompressed bytes is %q, want %q", asked, got, uncompressed)
		}
	}
}

func labelled(t *testing.T, s suite) {
	tree := s.Tree(t, one, sample)
	labels := map[string]string{"of": "a test"}
	d := s.diff(t, nil, tree.Mounts, diff.DiffOptions{Labels: labels})
	want := map[string]string{"of": "a test", diff.LabelUncompressed: digest.FromBytes(s.archive(t, d)).String()}
	blobs := s.blobs.In(one)
	info, err := blobs.Info(t.Context(), d.Digest)
	if diff := cmp.Diff(want, info.Labels); diff != "" || err != nil {
		t.Errorf("labels: %v (-want +got):\n%s", err, diff)
	}
	if len(labels) != 1 {
		t.Errorf("the caller's labels became %v", labels)
	}
	// Whoever had the blob before did not know what it is.
	if _, err := blobs.Update(t.Context(), content.Info{Digest: d.Digest, Labels: map[string]string{"mine": "yes"}}, "labels"); err != nil {
		t.Fatal(err)
	}
	if again := s.diff(t, nil, tree.Mounts, diff.DiffOptions{Labels: labels}); again.Digest != d.Digest || again.Size != d.Size {
		t.Errorf("the second layer is %v, want %v", again, d)
	}
	delete(want, "of")
	want["mine"] = "yes"
	info, err = blobs.Info(t.Context(), d.Digest)
	if diff := cmp.Diff(want, info.Labels); diff != "" || err != nil {
		t.Errorf("labels of what was there: %v (-want +got):\n%s", err, diff)
	}
	if all, err := blobs.ListStatuses(t.Context()); len(all) > 0 || err != nil {
		t.Errorf("ingests are left: %v, %v", all, err)
	}
}

func bounded(t *testing.T, s suite) {
	latest := Epoch.Add(-1000 * time.Hour)
	tree := s.Tree(t, one, sample)
	d := s.diff(t, nil, tree.Mounts, diff.DiffOptions{SourceDateEpoch: &latest})
	n := 0
	for r := tar.NewReader(bytes.NewReader(s.archive(t, d))); ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.After(latest) {
			t.Errorf("%q has the time %v", h.Name, h.ModTime)
		}
	}
	if n == 0 {
		t.Error("the layer is empty")
	}
}

func startedOver(t *testing.T, s suite) {
	tree := s.Tree(t, one, sample)
	want := s.diff(t, nil, tree.Mounts, diff.DiffOptions{})
	blobs := s.blobs.In(one)
	if err := blobs.Delete(t.Context(), want.Digest); err != nil {
		t.Fatal(err)
	}
	w, err := blobs.Writer(t.Context(), content.WriterOptions{Ref: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := fmt.Fprint(w, "what came of an earlier attempt"); err != nil {
		t.Fatal(err)
	}
	o := diff.DiffOptions{Ref: "mine"}
	_, err = s.Services.In(one).Diff(t.Context(), nil, tree.Mounts, o)
	wantKind(t, "Diff under a ref that is held", err, errdefs.ErrUnavailable)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, s.diff(t, nil, tree.Mounts, o)); diff != "" {
		t.Errorf("the layer under a ref that had something (-want +got):\n%s", diff)
	}
}

func foreign(t *testing.T, s suite) {
	mine, theirs := s.Tree(t, one, sample), s.Tree(t, two, sample)
	for what, mounts := range map[string][2][]mount.Mount{
		"another namespace's above": {nil, theirs.Mounts},
		"another namespace's below": {theirs.Mounts, mine.Mounts},
		"no mounts":                 {mine.Mounts, nil},
		"the host above":            {nil, {{Type: "bind", Source: "/", Options: []string{"ro", "rbind"}}}},
		"the host below":            {{{Type: "bind", Source: "/", Options: []string{"ro", "rbind"}}}, mine.Mounts},
		"another file system":       {nil, {{Type: "proc", Source: "proc"}}},
	} {
		_, err := s.Services.In(one).Diff(t.Context(), mounts[0], mounts[1], diff.DiffOptions{})
		wantKind(t, "Diff of "+what, err, errdefs.ErrInvalidArgument)
	}
	wantNothing(t, s)
}

// wantNothing is for what fails: nothing is left in the content store.
func wantNothing(t *testing.T, s suite) {
	t.Helper()
	blobs := s.blobs.In(one)
	for info, err := range blobs.List(t.Context()) {
		t.Errorf("there is the blob %v, %v", info.Digest, err)
	}
	if all, err := blobs.ListStatuses(t.Context()); len(all) > 0 || err != nil {
		t.Errorf("ingests are left: %v, %v", all, err)
	}
}

func missingLease(t *testing.T, s suite) {
	tree := s.Tree(t, one, sample)
	scope := namespace.Scope{Name: one.Name, Lease: "that is not"}
	_, err := s.Services.In(scope).Diff(t.Context(), nil, tree.Mounts, diff.DiffOptions{})
	wantKind(t, "Diff under a lease that does not exist", err, errdefs.ErrNotFound)
	wantNothing(t, s)
}

func endedDiff(t *testing.T, s suite) {
	tree := s.Tree(t, one, sample)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Services.In(one).Diff(ctx, nil, tree.Mounts, diff.DiffOptions{})
	wantKind(t, "Diff", err, context.Canceled)
	wantNothing(t, s)
}
