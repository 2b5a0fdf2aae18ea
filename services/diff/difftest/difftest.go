// Package difftest holds the promises of [diff.Service], a corpus of layers
// that try to break them, and a service in memory that keeps them.
package difftest

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
)

// A Fixture is what the promises are tested on.
type Fixture struct {
	Services diff.Services

	// Tree makes an empty tree in a namespace, on top of one for each of the
	// archives in below, of which the first is the lowest.
	Tree func(t *testing.T, scope namespace.Scope, below ...[]byte) Tree
}

// A Tree is what layers are applied to.
type Tree struct {
	Mounts []mount.Mount

	// Files describes what a container would see, by path: "file <contents>",
	// or "file of <bytes>" for one that is long, "dir", "link <target>",
	// "char <major>:<minor>", "block …" and "pipe", followed by
	// " <name>=<value>" for each extended attribute.
	Files func(t *testing.T) map[string]string
}

// Run tests the fixtures that open returns. It calls open once per promise.
func Run(t *testing.T, open func(t *testing.T, blobs content.Stores) Fixture) {
	for _, p := range promises {
		t.Run(p.name, func(t *testing.T) {
			blobs := NewBlobs()
			p.check(t, suite{Fixture: open(t, blobs), blobs: blobs})
		})
	}
}

// RunHostile applies each layer of the corpus to the fixture that open returns.
// intact is called after each, to see that nothing outside of the tree changed.
func RunHostile(t *testing.T, canary string, intact func(t *testing.T), open func(t *testing.T, blobs content.Stores) Fixture) {
	blobs := NewBlobs()
	s := suite{Fixture: open(t, blobs), blobs: blobs}
	for _, h := range Hostiles(canary) {
		t.Run(h.Name, func(t *testing.T) {
			if h.Slow && Raced {
				t.Skip("the race detector learns nothing from its size")
			}
			defer intact(t)
			s.hostile(t, h)
		})
	}
}

var promises = []struct {
	name  string
	check func(*testing.T, suite)
}{
	{"a layer's files are there after it was applied", applied},
	{"the result describes the uncompressed layer, whatever the media type", described},
	{"layers go on top of each other", stacked},
	{"whiteouts remove what is below", removed},
	{"a media type that cannot be read is not implemented", unknownType},
	{"a blob that is missing, or another namespace's, is not found", missingBlob},
	{"a digest that does not parse is refused", badDigest},
	{"a blob that does not hash to its digest is refused", lyingDigest},
	{"a blob of another size is refused", lyingSize},
	{"a layer that does not decompress is refused", damaged},
	{"a layer that climbs out is refused", climbing},
	{"a context that has ended applies nothing", ended},

	{"a difference, applied to the lower tree, makes the upper one", made},
	{"what does not differ makes a layer of nothing", unchanged},
	{"a layer has the media type that was asked for, and says what it is uncompressed", mediaTypes},
	{"a layer has labels, and one that was there is told what it is", labelled},
	{"no time in a layer is after the one that bounds it", bounded},
	{"a ref that has bytes is started over, and one that is held is unavailable", startedOver},
	{"what is not a snapshot of the namespace has no difference", foreign},
	{"a difference under a lease that does not exist is not found", missingLease},
	{"a context that has ended makes nothing", endedDiff},
	{"a layer of a media type that cannot be written is not implemented", unwritable},
}

type suite struct {
	Fixture
	blobs *Blobs
}

var (
	one = namespace.Scope{Name: "one"}
	two = namespace.Scope{Name: "two"}
)

// put adds a layer to a namespace.
func (s suite) put(data []byte, mediaType string) ocispec.Descriptor {
	d := digest.FromBytes(data)
	s.blobs.Put(one.Name, d, data)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (s suite) apply(t *testing.T, layer ocispec.Descriptor, mounts []mount.Mount) (ocispec.Descriptor, error) {
	t.Helper()
	return s.Services.In(one).Apply(t.Context(), layer, mounts, diff.ApplyOptions{})
}

func wantKind(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: got error %v, want %v", what, err, kind)
	}
}

// wantFiles compares those files that want names; nothing is none.
func wantFiles(t *testing.T, tree Tree, want map[string]string) {
	t.Helper()
	got := tree.Files(t)
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got[path] != want[path] {
			t.Errorf("%.200q is %.200q, want %.200q", path, got[path], want[path])
		}
	}
	if t.Failed() {
		var all []string
		for _, path := range slices.Sorted(maps.Keys(got)) {
			if all = append(all, fmt.Sprintf("%.200q: %.200q", path, got[path])); len(all) == 50 {
				break
			}
		}
		t.Logf("the tree has\n%s", strings.Join(all, "\n"))
	}
}

func (s suite) hostile(t *testing.T, h Hostile) {
	var below [][]byte
	if h.Below != nil {
		below = append(below, h.Below)
	}
	tree := s.Tree(t, one, below...)
	mediaType := h.MediaType
	if mediaType == "" {
		mediaType = ocispec.MediaTypeImageLayer
	}
	layer := s.put(h.Layer, mediaType)
	if h.Digest != "" {
		layer.Digest = h.Digest
		s.blobs.Put(one.Name, h.Digest, h.Layer)
	}
	_, err := s.apply(t, layer, tree.Mounts)
	if h.Refused {
		wantKind(t, "Apply", err, errdefs.ErrInvalidArgument)
		return
	}
	if err != nil {
		t.Fatalf("Apply: %v", err)
	}
	wantFiles(t, tree, h.Want)
}

// sample is an archive of each kind of file.
var sample = Tar(
	Dir("etc"), File("etc/hostname", "node\n"), Symlink("etc/link", "hostname"),
	Dir("usr"), Dir("usr/lib"), Symlink("lib", "usr/lib"), File("lib/libc.so", "code"),
	Link("usr/lib/libc.so.6", "usr/lib/libc.so"), File("no/entry/for/its/directory", "x"),
)

var sampleFiles = map[string]string{
	"etc": "dir", "etc/hostname": "file node\n", "etc/link": "link hostname",
	"usr": "dir", "usr/lib": "dir", "lib": "link usr/lib",
	"usr/lib/libc.so": "file code", "usr/lib/libc.so.6": "file code",
	"no": "dir", "no/entry": "dir", "no/entry/for": "dir", "no/entry/for/its": "dir", "no/entry/for/its/directory": "file x",
}

func applied(t *testing.T, s suite) {
	tree := s.Tree(t, one)
	if _, err := s.apply(t, s.put(sample, ocispec.MediaTypeImageLayer), tree.Mounts); err != nil {
		t.Fatalf("Apply: %v", err)
	}
	if diff := cmp.Diff(sampleFiles, tree.Files(t)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func described(t *testing.T, s suite) {
	want := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(sample), Size: int64(len(sample))}
	packed := map[string][]byte{"": sample, "gzip": Gzip(sample), "zstd": Zstd(sample)}
	for mediaType, packing := range map[string]string{
		ocispec.MediaTypeImageLayer:     "",
		ocispec.MediaTypeImageLayerGzip: "gzip",
		ocispec.MediaTypeImageLayerZstd: "zstd",

		"application/vnd.oci.image.layer.nondistributable.v1.tar":      "",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",

		"application/vnd.docker.image.rootfs.diff.tar":              "",
		"application/vnd.docker.image.rootfs.diff.tar.gzip":         "gzip",
		"application/vnd.docker.image.rootfs.diff.tar.zstd":         "zstd",
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "gzip",
	} {
		tree := s.Tree(t, one)
		got, err := s.apply(t, s.put(packed[packing], mediaType), tree.Mounts)
		if err != nil {
			t.Errorf("Apply of %s: %v", mediaType, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Apply of %s (-want +got):\n%s", mediaType, diff)
		}
		wantFiles(t, tree, sampleFiles)
	}
	// A layer that was given the wrong type of compression is read all the same.
	for _, packing := range []string{"", "zstd"} {
		tree := s.Tree(t, one)
		if got, err := s.apply(t, s.put(packed[packing], ocispec.MediaTypeImageLayerGzip), tree.Mounts); err != nil || got.Digest != want.Digest {
			t.Errorf("Apply of %q said to be gzip: %v, %v", packing, got, err)
		}
	}
}

func stacked(t *testing.T, s suite) {
	tree := s.Tree(t, one, sample, Tar(File("etc/hostname", "second"), File("etc/new", "n")))
	layer := Tar(File("etc/new", "third"), File("lib/more", "m"), Dir("no/entry"), Symlink("etc/link", "new"))
	if _, err := s.apply(t, s.put(layer, ocispec.MediaTypeImageLayer), tree.Mounts); err != nil {
		t.Fatalf("Apply: %v", err)
	}
	want := maps.Clone(sampleFiles)
	maps.Copy(want, map[string]string{
		"etc/hostname": "file second", "etc/new": "file third", "usr/lib/more": "file m", "etc/link": "link new",
	})
	if diff := cmp.Diff(want, tree.Files(t)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func removed(t *testing.T, s suite) {
	tree := s.Tree(t, one, sample)
	layer := Tar(File(".wh.etc", ""), File("lib/.wh.libc.so", ""), File("no/.wh..wh..opq", ""), File("no/new", "n"))
	if _, err := s.apply(t, s.put(layer, ocispec.MediaTypeImageLayer), tree.Mounts); err != nil {
		t.Fatalf("Apply: %v", err)
	}
	want := map[string]string{
		"usr": "dir", "usr/lib": "dir", "lib": "link usr/lib", "usr/lib/libc.so.6": "file code", "no": "dir", "no/new": "file n",
	}
	if diff := cmp.Diff(want, tree.Files(t)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func unknownType(t *testing.T, s suite) {
	tree := s.Tree(t, one)
	for _, mediaType := range []string{"", "text/plain", ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageLayerGzip + "+encrypted", "application/vnd.oci.image.layer.v1.erofs"} {
		_, err := s.apply(t, s.put(sample, mediaType), tree.Mounts)
		wantKind(t, fmt.Sprintf("Apply of %q", mediaType), err, errdefs.ErrNotImplemented)
	}
	wantEmpty(t, tree)
}

func wantEmpty(t *testing.T, tree Tree) {
	t.Helper()
	if got := tree.Files(t); len(got) > 0 {
		t.Errorf("the tree has %v, want nothing", got)
	}
}

func missingBlob(t *testing.T, s suite) {
	layer := s.put(sample, ocispec.MediaTypeImageLayer)
	tree := s.Tree(t, two)
	_, err := s.Services.In(two).Apply(t.Context(), layer, tree.Mounts, diff.ApplyOptions{})
	wantKind(t, "Apply of another namespace's", err, errdefs.ErrNotFound)
	layer.Digest = digest.FromString("missing")
	tree = s.Tree(t, one)
	_, err = s.apply(t, layer, tree.Mounts)
	wantKind(t, "Apply of a missing one", err, errdefs.ErrNotFound)
	wantEmpty(t, tree)
}

func badDigest(t *testing.T, s suite) {
	tree := s.Tree(t, one)
	for _, d := range []digest.Digest{"", "sha256:", "sha256:../../etc/passwd", "md5:00000000000000000000000000000000"} {
		layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: 1}
		_, err := s.apply(t, layer, tree.Mounts)
		wantKind(t, fmt.Sprintf("Apply of %q", d), err, errdefs.ErrInvalidArgument)
	}
	wantEmpty(t, tree)
}

func lyingDigest(t *testing.T, s suite) {
	layer := s.put(sample, ocispec.MediaTypeImageLayer)
	layer.Digest = digest.FromString("lie")
	s.blobs.Put(one.Name, layer.Digest, sample)
	_, err := s.apply(t, layer, s.Tree(t, one).Mounts)
	wantKind(t, "Apply", err, errdefs.ErrInvalidArgument)
}

func lyingSize(t *testing.T, s suite) {
	layer := s.put(sample, ocispec.MediaTypeImageLayer)
	for _, size := range []int64{layer.Size - 1, layer.Size + 1, -1} {
		layer.Size = size
		_, err := s.apply(t, layer, s.Tree(t, one).Mounts)
		wantKind(t, fmt.Sprintf("Apply with size %d", size), err, errdefs.ErrInvalidArgument)
	}
}

func damaged(t *testing.T, s suite) {
	zip := Gzip(sample)
	for what, data := range map[string][]byte{
		"cut off": zip[:len(zip)/2], "changed": append(append(slices.Clone(zip[:100]), 0xff, 0xff), zip[102:]...),
	} {
		_, err := s.apply(t, s.put(data, ocispec.MediaTypeImageLayerGzip), s.Tree(t, one).Mounts)
		wantKind(t, "Apply of a layer that was "+what, err, errdefs.ErrInvalidArgument)
	}
	_, err := s.apply(t, s.put(sample[:len(sample)/3], ocispec.MediaTypeImageLayer), s.Tree(t, one).Mounts)
	wantKind(t, "Apply of an archive that was cut off", err, errdefs.ErrInvalidArgument)
}

func climbing(t *testing.T, s suite) {
	for _, e := range []Entry{
		File("../evil", "x"), File("a/../../evil", "x"), Link("h", "../evil"), Node("../dev", tar.TypeFifo, 0, 0), File("../.wh.evil", ""),
	} {
		_, err := s.apply(t, s.put(Tar(File("fine", ""), e), ocispec.MediaTypeImageLayer), s.Tree(t, one).Mounts)
		wantKind(t, "Apply of "+e.Name, err, errdefs.ErrInvalidArgument)
	}
}

func ended(t *testing.T, s suite) {
	tree := s.Tree(t, one)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Services.In(one).Apply(ctx, s.put(sample, ocispec.MediaTypeImageLayer), tree.Mounts, diff.ApplyOptions{})
	wantKind(t, "Apply", err, context.Canceled)
	wantEmpty(t, tree)
}

func unwritable(t *testing.T, s suite) {
	lower, upper := s.Tree(t, one), s.Tree(t, one)
	_, err := s.Services.In(one).Diff(t.Context(), lower.Mounts, upper.Mounts, diff.DiffOptions{MediaType: "text/plain"})
	wantKind(t, "Diff", err, errdefs.ErrNotImplemented)
}
