// Package pack writes layers: what differs between two trees, see package
// changes, as a tar stream, compressed or not.
//
// The same trees make the same bytes, on a machine of any number of cores: there
// is nothing in a layer but what is in the trees. Times are of modification only,
// and to the nanosecond; entries are in order of their paths; the archive is in
// the USTAR format, with PAX records where that cannot say it; what is hidden is
// named one by one, with a time of 0, and there are no opaque marks.
//
// # Limits
//
// A few buffers for each of at most workersMax cores, and what package changes
// remembers. Nothing has the length of the layer, and what is in it is at most
// sizeMax long.
package pack

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/snapshotd/changes"
)

// A Format is a form that layers are written in.
type Format struct {
	MediaType string // of OCI

	// compress returns a writer that keeps so many cores busy; nil for a
	// layer that is not compressed.
	compress func(w io.Writer, workers int) (compressor, error)
}

// A compressor has goroutines until it was closed or stopped, each of which may
// come after the other.
type compressor interface {
	io.WriteCloser
	stop()
}

// Compressed tells whether the bytes of a layer are others than those of its
// archive.
func (f Format) Compressed() bool { return f.compress != nil }

// FormatOf returns the format that a caller asks for, in the words of OCI or of
// Docker; nothing is gzip. One that is not written is
// [errdefs.ErrNotImplemented].
func FormatOf(mediaType string) (Format, error) {
	switch mediaType {
	case ocispec.MediaTypeImageLayer, "application/vnd.docker.image.rootfs.diff.tar":
		return Format{MediaType: ocispec.MediaTypeImageLayer}, nil
	case "", ocispec.MediaTypeImageLayerGzip, "application/vnd.docker.image.rootfs.diff.tar.gzip":
		return Format{ocispec.MediaTypeImageLayerGzip, newGzip}, nil
	case ocispec.MediaTypeImageLayerZstd, "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return Format{ocispec.MediaTypeImageLayerZstd, newZstd}, nil
	}
	return Format{}, fmt.Errorf("make a layer of media type %.200q: %w", mediaType, errdefs.ErrNotImplemented)
}

const (
	// workersMax bounds memory: the more cores, the more buffers.
	workersMax = 4

	// writeSize is how much is written at once, in bytes: each may be a call to
	// another daemon.
	writeSize = 1 << 20
)

// Write writes to w the layer that turns trees.Lower into trees.Upper, and
// returns the digest of its archive. No time in it is after latest, if there is
// one. It fails as [changes.Walk] does; w has part of the layer then, and
// nothing if that is [changes.ErrUnclear].
func Write(ctx context.Context, w io.Writer, f Format, trees changes.Trees, latest *time.Time) (digest.Digest, error) {
	hash := sha256.New()
	out := bufio.NewWriterSize(w, writeSize)
	to := io.Writer(out)
	var z compressor
	if f.Compressed() {
		var err error
		if z, err = f.compress(out, min(runtime.GOMAXPROCS(0), workersMax)); err != nil {
			return "", err
		}
		defer z.stop()
		to = z
	}
	if err := archive(ctx, io.MultiWriter(hash, to), trees, latest); err != nil {
		return "", err
	}
	if z != nil {
		if err := z.Close(); err != nil {
			return "", err
		}
	}
	return digest.NewDigest(digest.SHA256, hash), out.Flush()
}
