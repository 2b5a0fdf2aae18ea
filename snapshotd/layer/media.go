package layer

import (
	"bytes"
	"fmt"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A compression is how a layer's bytes are packed.
type compression int

const (
	plain compression = iota
	sniffed
)

// mediaTypes are the layers that are understood. A type that says it is
// compressed, and Docker's type for one that is not, are told by their first
// bytes: registries are full of layers under the wrong one of them.
var mediaTypes = map[string]compression{
	ocispec.MediaTypeImageLayer:     plain,
	ocispec.MediaTypeImageLayerGzip: sniffed,
	ocispec.MediaTypeImageLayerZstd: sniffed,

	// Layers that were not to be pushed.
	"application/vnd.oci.image.layer.nondistributable.v1.tar":      plain,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": sniffed,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": sniffed,

	"application/vnd.docker.image.rootfs.diff.tar":              sniffed,
	"application/vnd.docker.image.rootfs.diff.tar.gzip":         sniffed,
	"application/vnd.docker.image.rootfs.diff.tar.zstd":         sniffed,
	"application/vnd.docker.image.rootfs.foreign.diff.tar":      sniffed,
	"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": sniffed,
	"application/vnd.docker.image.rootfs.foreign.diff.tar.zstd": sniffed,
}

func compressionOf(mediaType string) (compression, error) {
	c, ok := mediaTypes[mediaType]
	if !ok {
		return plain, fmt.Errorf("layer of media type %.200q: %w", mediaType, errdefs.ErrNotImplemented)
	}
	return c, nil
}

func isGzip(start []byte) bool { return bytes.HasPrefix(start, []byte{0x1f, 0x8b, 0x08}) }

// isZstd knows a frame, and a skippable one, which may come first.
func isZstd(start []byte) bool {
	return bytes.HasPrefix(start, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(start) >= 4 && start[0]&0xf0 == 0x50 && bytes.Equal(start[1:4], []byte{0x2a, 0x4d, 0x18})
}
