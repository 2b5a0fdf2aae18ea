package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"runtime"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An ociImage is an image in memory.
type ociImage struct {
	blobs    []blob // the manifest is last
	layers   []ocispec.Descriptor
	unpacked int64 // bytes of the layers
	diffIDs  []digest.Digest
}

func (m *ociImage) target() ocispec.Descriptor { return m.blobs[len(m.blobs)-1].desc }

// size is that of the layers, packed.
func (m *ociImage) size() (n int64) {
	for _, l := range m.layers {
		n += l.Size
	}
	return n
}

func (m *ociImage) add(mediaType string, b []byte) ocispec.Descriptor {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	m.blobs = append(m.blobs, blob{b, desc})
	return desc
}

// layer adds a layer that is packed as image builders pack it: by the standard
// library, at its default level.
func (m *ociImage) layer(archive []byte) error {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(archive); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	m.layers = append(m.layers, m.add(ocispec.MediaTypeImageLayerGzip, packed.Bytes()))
	m.diffIDs = append(m.diffIDs, digest.FromBytes(archive))
	m.unpacked += int64(len(archive))
	return nil
}

// finish adds the config and the manifest.
func (m *ociImage) finish() error {
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: m.diffIDs},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    m.add(ocispec.MediaTypeImageConfig, config),
		Layers:    m.layers,
	})
	if err != nil {
		return err
	}
	m.add(ocispec.MediaTypeImageManifest, manifest)
	return nil
}

// put gives a namespace the image under a name. The bytes that another namespace
// has are not stored again.
func (m *ociImage) put(ctx context.Context, d *door, name string) (images.Image, error) {
	for i, b := range m.blobs {
		labels := map[string]string{"containerd.io/gc.root": "bench"}
		if i == len(m.blobs)-1 {
			config := m.blobs[i-1]
			labels["containerd.io/gc.ref.content.config"] = config.desc.Digest.String()
		}
		err := content.WriteBlob(ctx, d.store, "put-"+b.desc.Digest.Encoded(), bytes.NewReader(b.bytes), b.desc, content.WithLabels(labels))
		if err != nil {
			return images.Image{}, err
		}
	}
	return d.client.ImageService().Create(ctx, images.Image{Name: name, Target: m.target()})
}

// An archive is a layer in the making, the same at each run.
type archive struct {
	*material
	out   bytes.Buffer
	w     *tar.Writer
	files int
}

func newArchive(seed uint64) *archive {
	a := &archive{material: newMaterial(seed)}
	a.w = tar.NewWriter(&a.out)
	return a
}

var modified = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// entry cannot fail: it writes to memory.
func (a *archive) entry(h tar.Header, body []byte) {
	h.Size, h.ModTime = int64(len(body)), modified
	_ = a.w.WriteHeader(&h)
	_, _ = a.w.Write(body)
}

func (a *archive) dir(name string) {
	a.entry(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, nil)
}

func (a *archive) file(name string, body []byte) {
	mode := int64(0o644)
	if a.files++; a.files%5 == 0 {
		mode = 0o755
	}
	a.entry(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, body)
}

func (a *archive) bytes() ([]byte, error) {
	err := a.w.Close()
	return a.out.Bytes(), err
}

// unpackedRatio is how many bytes material is to one packed.
const unpackedRatio = 2.5

// largeLayer is some megabytes when packed, in files whose sizes have a long
// tail, as those of a distribution: half are below 4 KiB, and most bytes are in
// few.
func largeLayer(megabytes, files int) ([]byte, error) {
	a := newArchive(1)
	sizes := make([]int, files)
	sum := 0.0
	for i := range sizes {
		sizes[i] = int(min(3600*math.Exp(2*a.r.NormFloat64()), 24<<20))
		sum += float64(sizes[i])
	}
	// The tail only is stretched, so that the small ones stay small.
	scale := (float64(megabytes)*1e6*unpackedRatio - sum/10) / (sum * 9 / 10)
	a.dir("usr")
	a.dir("usr/lib")
	for i, size := range sizes {
		dir := fmt.Sprintf("usr/lib/p%03d", i/40)
		if i%40 == 0 {
			a.dir(dir)
		}
		if i%10 == 0 {
			dir += fmt.Sprintf("/s%d", i%40/10)
			a.dir(dir)
		} else {
			dir += fmt.Sprintf("/s%d", i%40/10)
		}
		if size > 16<<10 {
			size = int(float64(size) * scale)
		}
		a.file(fmt.Sprintf("%s/f%d", dir, i), a.body(size))
		if i%16 == 0 {
			a.entry(tar.Header{Typeflag: tar.TypeSymlink, Name: fmt.Sprintf("%s/l%d", dir, i), Linkname: fmt.Sprintf("f%d", i), Mode: 0o777}, nil)
		}
	}
	return a.bytes()
}

// smallLayer is many small files of text, in directories of their own below one
// that all layers share.
func smallLayer(number, files int) ([]byte, error) {
	a := newArchive(uint64(number) + 100)
	a.dir("usr")
	a.dir("usr/share")
	for i := range files {
		dir := fmt.Sprintf("usr/share/layer%02d-%02d", number, i/25)
		if i%25 == 0 {
			a.dir(dir)
		}
		a.file(fmt.Sprintf("%s/f%d", dir, i), a.text(200+a.r.IntN(3800)))
	}
	// A file that every layer replaces.
	a.file("usr/share/index", []byte(strings.Repeat(fmt.Sprintln("layer", number), 50)))
	return a.bytes()
}
