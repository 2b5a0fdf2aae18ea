package client

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An imageEntry is an image as its archive lists it.
type imageEntry struct {
	names  []string // what the archive calls it
	target ocispec.Descriptor
}

// images lists what an archive has: an OCI layout says so in index.json, an
// archive of `docker save` in manifest.json. One that is both is taken as an
// OCI layout.
func (a *archive) images() ([]imageEntry, error) {
	if _, ok := a.files[ocispec.ImageLayoutFile]; ok {
		return a.layoutImages()
	}
	if _, ok := a.files["manifest.json"]; ok {
		return a.dockerImages()
	}
	return nil, invalid("this is no image archive: it has neither %s nor manifest.json", ocispec.ImageLayoutFile)
}

// annotationName is where containerd's and docker's clients put the whole name;
// OCI's annotation may be a mere tag.
const annotationName = "io.containerd.image.name"

func (a *archive) layoutImages() ([]imageEntry, error) {
	var layout ocispec.ImageLayout
	if err := a.parse(ocispec.ImageLayoutFile, &layout); err != nil {
		return nil, err
	}
	if layout.Version != ocispec.ImageLayoutVersion {
		return nil, fmt.Errorf("OCI layout of version %q: %w", layout.Version, errdefs.ErrNotImplemented)
	}
	f, err := a.find(ocispec.ImageIndexFile)
	if err != nil {
		return nil, err
	}
	index, err := parseDocument(ocispec.MediaTypeImageIndex, f.bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
	}
	var images []imageEntry
	for _, d := range index.Manifests {
		name := d.Annotations[annotationName]
		if name == "" {
			name = d.Annotations[ocispec.AnnotationRefName]
		}
		if !isManifest(d.MediaType) && !isIndex(d.MediaType) {
			continue
		}
		// Annotations and platform say how the index lists it, not what it is.
		images = add(images, name, ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size})
	}
	return images, nil
}

// add adds an image, or a name of one that is listed already.
func add(images []imageEntry, name string, target ocispec.Descriptor) []imageEntry {
	var names []string
	if name != "" {
		names = []string{name}
	}
	for i := range images {
		if images[i].target.Digest == target.Digest {
			images[i].names = append(images[i].names, names...)
			return images
		}
	}
	return append(images, imageEntry{names: names, target: target})
}

// A dockerImage is an entry of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string // paths, the lowest first
}

// dockerImages makes a manifest for each image of an archive of `docker save`,
// which has none.
func (a *archive) dockerImages() ([]imageEntry, error) {
	var list []dockerImage
	if err := a.parse("manifest.json", &list); err != nil {
		return nil, err
	}
	var images []imageEntry
	for i, d := range list {
		target, err := a.dockerManifest(d)
		if err != nil {
			return nil, fmt.Errorf("manifest.json: image %d: %w", i, err)
		}
		names := d.RepoTags
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			images = add(images, name, target)
		}
	}
	return images, nil
}

func (a *archive) dockerManifest(d dockerImage) (ocispec.Descriptor, error) {
	config, err := a.find(d.Config)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: config.digest, Size: config.size},
		Layers:    []ocispec.Descriptor{},
	}
	for _, name := range d.Layers {
		f, err := a.find(name)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: layerType(f.head), Digest: f.digest, Size: f.size})
	}
	b, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	f := &file{name: "manifest", digest: digest.FromBytes(b), size: int64(len(b)), bytes: b}
	a.blobs[f.digest] = f
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: f.digest, Size: f.size}, nil
}

// layerType tells how a layer is compressed by its first bytes.
func layerType(head []byte) string {
	switch {
	case bytes.HasPrefix(head, magicGzip):
		return ocispec.MediaTypeImageLayerGzip
	case bytes.HasPrefix(head, magicZstd):
		return ocispec.MediaTypeImageLayerZstd
	}
	return ocispec.MediaTypeImageLayer
}

// parse reads a JSON file of the archive.
func (a *archive) parse(name string, v any) error {
	f, err := a.find(name)
	if err != nil {
		return err
	}
	if f.bytes == nil {
		return invalid("%s: has %d bytes; at most %d are read", name, f.size, manifestMax)
	}
	if err := parseJSON(f.bytes, manifestMax, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// nameMax is how long an image's name is at most, in bytes.
const nameMax = 1024

// checkName refuses what would not survive being printed.
func checkName(name string) error {
	if name == "" || len(name) > nameMax || strings.ContainsFunc(name, func(r rune) bool {
		return unicode.IsControl(r) || unicode.IsSpace(r) || r == unicode.ReplacementChar
	}) {
		return invalid("%q is no name for an image", name)
	}
	return nil
}
