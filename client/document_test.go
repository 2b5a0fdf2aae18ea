package client

import (
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FuzzDocument holds that no bytes are both an index and a manifest, whoever
// says which they are, and that what is accepted has nothing of the other in it.
func FuzzDocument(f *testing.F) {
	for _, s := range []string{
		`{"schemaVersion":2,"manifests":[]}`,
		`{"schemaVersion":2,"config":{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`,
		`{"manifests":null,"layers":null,"config":{}}`,
		`{"Manifests":[{}],"LAYERS":[{}]}`,
		`{"manifests":[{"digest":"sha256:x","size":-1}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		index, indexErr := parseDocument(ocispec.MediaTypeImageIndex, b)
		manifest, manifestErr := parseDocument(ocispec.MediaTypeImageManifest, b)
		if indexErr == nil && manifestErr == nil {
			t.Errorf("%s is both", b)
		}
		if indexErr == nil && (index.Config != nil || index.Layers != nil) {
			t.Errorf("%s is an index with layers", b)
		}
		if manifestErr == nil && (manifest.Config == nil || manifest.Manifests != nil) {
			t.Errorf("%s is a manifest with manifests, or without config", b)
		}
		for _, d := range append(index.children(), manifest.children()...) {
			if d.Size < 0 || d.Digest.Validate() != nil {
				t.Errorf("%s refers to %+v", b, d)
			}
		}
		if c, err := parseConfig(b, 1); err == nil && (len(c.RootFS.DiffIDs) != 1 || c.RootFS.DiffIDs[0].Validate() != nil) {
			t.Errorf("%s is a config with the layers %v", b, c.RootFS.DiffIDs)
		}
	})
}
