// Package layer extracts layers: tar streams, compressed or not, that were made
// by somebody whom nobody trusts, into trees that nobody trusts either.
//
// Every change is made relative to a descriptor of a directory inside the tree;
// links in names are followed as a container would follow them, with the root
// of the tree as "/", and the last component of a name is never followed. What
// a layer says can at worst fill its own tree, down to the free disk that the
// target reserves.
//
// # Whiteouts
//
// A whiteout removes what the layers below have, and never what its own layer
// has. In a tree that stands alone it removes what was there before. In one
// that lies over others it becomes an overlayfs whiteout in the directory of
// this layer, made when the stream is at its end and the overlay, if any, is
// unmounted: one node instead of as many removals as the hidden tree has files.
//
// # Limits
//
// The size is bounded only by the disk. Memory is not: a decoder with a window
// of at most 32 MiB, a few buffers, and lists of directories and whiteouts that
// are worked off when they are long. Names are as long as the kernel takes
// them, headers as long as archive/tar takes them (1 MiB).
//
// # Speed
//
// Three goroutines work on a layer: one reads, checks and decompresses; one
// hashes what comes out and makes the files; one writes them and sets their
// attributes. So Apply takes what the slowest takes, given three processors, and
// on fewer the sum of all by their number. What each is alone
//
//	go test -run '^$' -bench Apply ./snapshotd/layer
//
// measures on 9,000 files of 300 MB in all, and on many small ones: gunzip, hash
// (which is done to the compressed bytes too), and write, which makes the files
// one after the other as simply as it is done. It prints time, and what it used
// of processors, which depends less on what else the machine does. Of 2 cores of
// a Xeon, gunzip does 380 to 600 MB a second (compress/gzip 230, klauspost's
// 300) and the hash 1,300. For large layers those two and the copy into the page
// cache are nearly all; for small files it is the kernel that makes them, nine
// tenths in the one call that opens each. What sets owner, mode and times was
// 2 % of it: it is not worth to find out when that can be left out.
package layer

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Target is the tree that a layer goes into.
type Target struct {
	// Own is the directory of what belongs to this layer alone.
	Own *os.File

	// Root returns the tree as a container sees it: Own, if it is nil, or
	// Own mounted over the layers below. The file is closed before Own is
	// changed directly, and Root called again if there is more to extract.
	Root func() (*os.File, error)

	// Overlay keeps whiteouts in Own in the form of overlayfs, with
	// attributes of the prefix Attr ("trusted.overlay.").
	Overlay bool
	Attr    string

	// Detached says that the layers below are not there yet, as when layers
	// are extracted out of order: directories that the layer only passes
	// through are given [ImplicitAttr], so that a rebase can tell them.
	Detached bool

	// Rootless says that this process is root of a user namespace only. The
	// kernel makes no devices for it: they are left out, as by containerd.
	Rootless bool

	FreeMin int64 // bytes of free disk that are left alone
}

// A Result is what came out of a layer.
type Result struct {
	DiffID  digest.Digest // of the uncompressed bytes
	Size    int64         // of the uncompressed bytes
	Entries int64
	Dropped int64 // extended attributes that were not allowed or not supported
}

// Apply extracts the layer that desc describes, whose bytes open returns, into
// t. A media type that is not a layer's is [errdefs.ErrNotImplemented]; bytes
// that are not what desc says, do not decompress, or are not an archive that
// stays inside the tree are [errdefs.ErrInvalidArgument]; a disk that is too
// full is [errdefs.ErrResourceExhausted]. After an error the tree has part of
// the layer.
func Apply(ctx context.Context, desc ocispec.Descriptor, open func(context.Context) (io.ReadCloser, error), t Target) (Result, error) {
	c, err := compressionOf(desc.MediaType)
	if err != nil {
		return Result{}, err
	}
	if err := desc.Digest.Validate(); err != nil {
		return Result{}, fmt.Errorf("layer digest %q: %w: %w", desc.Digest, err, errdefs.ErrInvalidArgument)
	}
	if desc.Size < 0 {
		return Result{}, fmt.Errorf("layer %s: size %d: %w", desc.Digest, desc.Size, errdefs.ErrInvalidArgument)
	}
	s, err := newStream(ctx, desc, c, open)
	if err != nil {
		return Result{}, err
	}
	defer s.stop()
	x, err := newExtractor(ctx, s, t)
	if err != nil {
		return Result{}, err
	}
	defer x.close()
	if err := x.run(); err != nil {
		return Result{}, err
	}
	if err := s.finish(); err != nil {
		return Result{}, err
	}
	return Result{DiffID: s.diffID(), Size: s.size, Entries: x.entries, Dropped: x.dropped.Load()}, nil
}
