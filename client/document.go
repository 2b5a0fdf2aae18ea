package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits of what is read into memory, in bytes: an image's documents are small,
// and one that is not was made to be large.
const (
	manifestMax = 8 << 20 // an index or a manifest
	configMax   = 4 << 20
)

// layersMax is how many layers an image has at most; the kernel stacks fewer.
const layersMax = 1024

// Docker's names for what became OCI's documents.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
)

var (
	indexTypes    = []string{ocispec.MediaTypeImageIndex, dockerManifestList}
	manifestTypes = []string{ocispec.MediaTypeImageManifest, dockerManifest}
	configTypes   = []string{ocispec.MediaTypeImageConfig, dockerConfig}
)

func isIndex(mediaType string) bool    { return slices.Contains(indexTypes, mediaType) }
func isManifest(mediaType string) bool { return slices.Contains(manifestTypes, mediaType) }

// A document is an index or a manifest: which of both, its content says and
// its media type must agree.
type document struct {
	MediaType string               `json:"mediaType"`
	Manifests []ocispec.Descriptor `json:"manifests"` // of an index
	Config    *ocispec.Descriptor  `json:"config"`    // of a manifest
	Layers    []ocispec.Descriptor `json:"layers"`    // of a manifest
}

// parseDocument reads an index or a manifest. One that could be read as both,
// or as what its descriptor does not say, is [errdefs.ErrInvalidArgument].
func parseDocument(mediaType string, b []byte) (document, error) {
	var d document
	if err := parseJSON(b, manifestMax, &d); err != nil {
		return document{}, err
	}
	index, manifest := d.Manifests != nil, d.Config != nil || d.Layers != nil
	switch {
	case d.MediaType != "" && d.MediaType != mediaType:
		return document{}, invalid("says that it is %q where its descriptor says %q", d.MediaType, mediaType)
	case index && manifest:
		return document{}, invalid("is ambiguous: it has both manifests and layers")
	case isIndex(mediaType) && manifest, isManifest(mediaType) && index:
		return document{}, invalid("is not the %q that its descriptor says", mediaType)
	case isManifest(mediaType) && d.Config == nil:
		return document{}, invalid("has no config")
	case !isIndex(mediaType) && !isManifest(mediaType):
		return document{}, fmt.Errorf("media type %q is no image: %w", mediaType, errdefs.ErrNotImplemented)
	case len(d.Layers) > layersMax:
		return document{}, invalid("has %d layers; at most %d are supported", len(d.Layers), layersMax)
	}
	for _, desc := range d.children() {
		if err := checkDescriptor(desc); err != nil {
			return document{}, err
		}
	}
	return d, nil
}

// children are what a document refers to, in the order of the labels that tell
// so: a manifest's config first.
func (d document) children() []ocispec.Descriptor {
	if d.Config != nil {
		return append([]ocispec.Descriptor{*d.Config}, d.Layers...)
	}
	return d.Manifests
}

// references are the labels that a document's blob has so that what it refers
// to is kept with it. The keys are those of containerd's clients.
func (d document) references() map[string]string {
	labels := make(map[string]string, len(d.Layers)+len(d.Manifests)+1)
	if d.Config != nil {
		labels[labelContent+".config"] = d.Config.Digest.String()
	}
	for i, l := range d.Layers {
		labels[fmt.Sprintf("%s.l.%d", labelContent, i)] = l.Digest.String()
	}
	for i, m := range d.Manifests {
		labels[fmt.Sprintf("%s.m.%d", labelContent, i)] = m.Digest.String()
	}
	return labels
}

// parseConfig reads an image's config. Its layers must be those of the
// manifest, one for one.
func parseConfig(b []byte, layers int) (ocispec.Image, error) {
	var c ocispec.Image
	if err := parseJSON(b, configMax, &c); err != nil {
		return ocispec.Image{}, err
	}
	if t := c.RootFS.Type; t != "layers" {
		return ocispec.Image{}, invalid("has a root file system of type %q; want \"layers\"", t)
	}
	if n := len(c.RootFS.DiffIDs); n != layers {
		return ocispec.Image{}, invalid("has %d layers where its manifest has %d", n, layers)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return ocispec.Image{}, err
		}
	}
	return c, nil
}

// parseJSON reads one JSON value and nothing after it.
func parseJSON(b []byte, limit int, v any) error {
	if len(b) > limit {
		return invalid("has %d bytes; at most %d are read", len(b), limit)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(v); err != nil {
		return invalid("is not the JSON it should be: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return invalid("goes on after its JSON")
	}
	return nil
}

func checkDescriptor(d ocispec.Descriptor) error {
	if d.Size < 0 {
		return invalid("refers to %s with a size of %d", d.Digest, d.Size)
	}
	return checkDigest(d.Digest)
}

// checkDigest keeps what is not a digest out of paths and messages.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return invalid("refers to %q, which is no digest", string(d))
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
