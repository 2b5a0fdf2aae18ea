package clienttest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An Entry is one of a tar archive.
type Entry struct {
	Name string
	Body string
	Link string // of a symbolic link
	Type byte   // 0 is a file, or a link if there is one
}

// Tar returns an archive of entries, whatever they are.
func Tar(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.Name, Typeflag: e.Type, Size: int64(len(e.Body)), Linkname: e.Link, Mode: 0o644}
		switch {
		case e.Type == 0 && e.Link != "":
			h.Typeflag = tar.TypeSymlink
		case e.Type == 0:
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.Body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A Layout is an OCI layout being put together. Tests change what they want to
// be wrong.
type Layout struct {
	Blobs map[digest.Digest]string
	Index ocispec.Index
}

// NewLayout returns a layout without images.
func NewLayout() *Layout {
	return &Layout{
		Blobs: map[digest.Digest]string{},
		Index: ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}},
	}
}

// Blob adds a blob.
func (l *Layout) Blob(mediaType, body string) ocispec.Descriptor {
	d := digest.FromString(body)
	l.Blobs[d] = body
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}
}

// JSON adds a document as a blob.
func (l *Layout) JSON(t testing.TB, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return l.Blob(mediaType, string(b))
}

// Image adds an image for this machine with a config and layers, and returns
// its manifest.
func (l *Layout) Image(t testing.TB, config ocispec.ImageConfig, layers ...string) ocispec.Descriptor {
	t.Helper()
	img := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   config,
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
	}
	for _, body := range layers {
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, digest.FromString(body))
		m.Layers = append(m.Layers, l.Blob(ocispec.MediaTypeImageLayer, body))
	}
	m.Config = l.JSON(t, ocispec.MediaTypeImageConfig, img)
	return l.JSON(t, m.MediaType, m)
}

// Add lists an image under a name, which may be empty.
func (l *Layout) Add(name string, d ocispec.Descriptor) {
	if name != "" {
		d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	}
	l.Index.Manifests = append(l.Index.Manifests, d)
}

// Entries are the layout's files.
func (l *Layout) Entries(t testing.TB) []Entry {
	t.Helper()
	index, err := json.Marshal(l.Index)
	if err != nil {
		t.Fatal(err)
	}
	entries := []Entry{
		{Name: ocispec.ImageLayoutFile, Body: `{"imageLayoutVersion":"1.0.0"}`},
		{Name: ocispec.ImageIndexFile, Body: string(index)},
		{Name: "blobs/", Type: tar.TypeDir},
	}
	for d, body := range l.Blobs {
		entries = append(entries, Entry{Name: "blobs/sha256/" + d.Encoded(), Body: body})
	}
	return entries
}

// Archive is the layout in an archive.
func (l *Layout) Archive(t testing.TB) []byte {
	t.Helper()
	return Tar(t, l.Entries(t)...)
}

// Demo is the archive of one image called demo:latest, which runs "true" and
// has two layers. One of them is larger than what is kept in memory.
func Demo(t testing.TB) []byte {
	t.Helper()
	l := NewLayout()
	l.Add("demo:latest", l.Image(t, ocispec.ImageConfig{Cmd: []string{"true"}, Env: []string{"A=image"}},
		"layer one", strings.Repeat("layer two ", 20000)))
	return l.Archive(t)
}
