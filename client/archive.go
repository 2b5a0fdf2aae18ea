package client

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/content"
)

// Limits of an archive.
const (
	entriesMax = 1 << 16  // files, directories and links
	stagedMax  = 4096     // files that are too large for memory
	smallMax   = 64 << 10 // bytes of a file that is kept in memory whatever it is
	memoryMax  = 64 << 20 // bytes of all files that are kept in memory
	linksMax   = 8        // links in a row
	zstdMax    = 128 << 20
)

// An archive is what was read of an image's archive. Its blobs are ingests that
// have not been committed, or in memory: as long as nobody calls commit, the
// namespace has nothing of it.
type archive struct {
	ingests content.Ingests
	files   map[string]*file // by clean path
	links   map[string]string
	blobs   map[digest.Digest]*file
	staged  []*ingest // of the files that are not in memory, and of some that were
	memory  int64     // bytes of those that are
	prefix  string    // of the ingests' refs
}

// A file is a regular file of an archive.
type file struct {
	name   string
	digest digest.Digest
	size   int64
	head   []byte // the first bytes

	// One of these, unless the namespace has the blob.
	bytes  []byte
	ingest *ingest
}

// readArchive reads a tar archive, plain or compressed by gzip or zstd. The
// caller calls abort, which does nothing to what has been committed.
func readArchive(ctx context.Context, r io.Reader, ingests content.Ingests) (*archive, error) {
	a := &archive{
		ingests: ingests,
		files:   make(map[string]*file),
		links:   make(map[string]string),
		blobs:   make(map[digest.Digest]*file),
		prefix:  "import-" + rand.Text(),
	}
	plain, done, err := decompress(r)
	if err != nil {
		return a, err
	}
	defer done()
	t := tar.NewReader(plain)
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return a, unreadable(err)
		}
		if n == entriesMax {
			return a, invalid("the archive has more than %d entries", entriesMax)
		}
		if err := ctx.Err(); err != nil {
			return a, err
		}
		if err := a.entry(ctx, h, t); err != nil {
			return a, fmt.Errorf("%q: %w", h.Name, err)
		}
	}
	if len(a.files) == 0 {
		return a, invalid("the archive is empty")
	}
	return a, nil
}

// decompress returns the bytes of r as they were before they were compressed.
func decompress(r io.Reader) (plain io.Reader, done func(), err error) {
	b := bufio.NewReaderSize(r, 1<<20)
	head, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, magicGzip):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, nil, unreadable(err)
		}
		return z, func() {}, nil
	case bytes.HasPrefix(head, magicZstd):
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(zstdMax))
		if err != nil {
			return nil, nil, unreadable(err)
		}
		return z, z.Close, nil
	}
	return b, func() {}, nil
}

var (
	magicGzip = []byte{0x1f, 0x8b}
	magicZstd = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// unreadable says of an error of the archive's reader what it means.
func unreadable(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return invalid("the archive is truncated")
	}
	return invalid("the archive cannot be read: %v", err)
}

func (a *archive) entry(ctx context.Context, h *tar.Header, r io.Reader) error {
	name, err := inside(h.Name)
	if err != nil {
		return err
	}
	if _, ok := a.files[name]; ok || a.links[name] != "" {
		return invalid("is in the archive twice")
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return nil
	case tar.TypeReg:
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return invalid("is a sparse file")
			}
		}
		return a.file(ctx, name, h.Size, r)
	case tar.TypeSymlink, tar.TypeLink:
		// Docker's archives have a link for a layer that is there already.
		target := h.Linkname
		if h.Typeflag == tar.TypeSymlink {
			target = path.Join(path.Dir(name), target)
		}
		if path.IsAbs(h.Linkname) || target == ".." || strings.HasPrefix(target, "../") {
			return invalid("links to %q, out of the archive", h.Linkname)
		}
		if target, err = inside(target); err != nil {
			return err
		}
		a.links[name] = target
		return nil
	case tar.TypeXGlobalHeader:
		return nil
	}
	return invalid("is neither a file nor a directory nor a link")
}

// inside returns a name in its clean form. One that is absolute or climbs, even
// if it stays inside in the end, is no name that an honest archive has.
func inside(name string) (string, error) {
	if path.IsAbs(name) || name == "" {
		return "", invalid("the path is not relative")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", invalid("the path climbs out of the archive")
		}
	}
	return path.Clean(name), nil
}

// file takes in a regular file: into memory if it is small or may be a
// document, else into an ingest.
func (a *archive) file(ctx context.Context, name string, size int64, r io.Reader) error {
	f := &file{name: name, size: size}
	expected, err := blobName(name)
	if err != nil {
		return err
	}
	head := make([]byte, min(size, 512))
	if _, err := io.ReadFull(r, head); err != nil {
		return unreadable(err)
	}
	f.head = head
	hash := digest.Canonical.Digester()
	whole := io.TeeReader(io.MultiReader(bytes.NewReader(head), r), hash.Hash())

	document := bytes.HasPrefix(bytes.TrimLeft(head, " \t\r\n"), []byte("{")) || bytes.HasPrefix(head, []byte("["))
	if small := size <= smallMax || document && size <= manifestMax; small && a.memory+size <= memoryMax {
		f.bytes = make([]byte, size)
		if _, err := io.ReadFull(whole, f.bytes); err != nil {
			return unreadable(err)
		}
		a.memory += size
	} else if err := a.stage(ctx, f, expected, whole); err != nil {
		return err
	}
	f.digest = hash.Digest()
	if expected != "" && f.digest != expected {
		return invalid("has the bytes of %s", f.digest)
	}
	a.files[name] = f
	a.blobs[f.digest] = f
	return nil
}

// blobName returns the digest that a blob's path promises, or an empty one for
// a file that is not in blobs/.
func blobName(name string) (digest.Digest, error) {
	rest, ok := strings.CutPrefix(name, "blobs/")
	if !ok {
		return "", nil
	}
	algorithm, encoded, _ := strings.Cut(rest, "/")
	d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), encoded)
	if err := d.Validate(); err != nil {
		return "", invalid("is in blobs/ and its path is no digest")
	}
	if d.Algorithm() != digest.Canonical {
		return "", fmt.Errorf("digests of %s are not supported: %w", algorithm, errdefs.ErrNotImplemented)
	}
	return d, nil
}

// stage writes a file into an ingest of its own.
func (a *archive) stage(ctx context.Context, f *file, expected digest.Digest, r io.Reader) error {
	if len(a.staged) == stagedMax {
		return invalid("the archive has more than %d large files", stagedMax)
	}
	ingest, err := a.ingest(ctx, content.WriterOptions{Total: f.size, Expected: expected})
	if errdefs.IsAlreadyExists(err) {
		return copyFile(io.Discard, r, f.size)
	}
	if err != nil {
		return err
	}
	f.ingest = ingest
	if ingest.whole() {
		return copyFile(io.Discard, r, f.size)
	}
	return copyFile(ingest, r, f.size)
}

// ingest starts one that abort knows of.
func (a *archive) ingest(ctx context.Context, o content.WriterOptions) (*ingest, error) {
	o.Ref = fmt.Sprintf("%s-%d", a.prefix, len(a.staged))
	i, err := newIngest(ctx, a.ingests, o)
	if err == nil {
		a.staged = append(a.staged, i)
	}
	return i, err
}

// copyFile copies a file of the archive.
func copyFile(w io.Writer, r io.Reader, size int64) error {
	buf := make([]byte, min(size, 1<<20))
	for size > 0 {
		n, err := io.ReadFull(r, buf[:min(size, int64(len(buf)))])
		if err != nil {
			return unreadable(err)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}

// find returns the regular file of a path, through links.
func (a *archive) find(name string) (*file, error) {
	name, err := inside(name)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", name, err)
	}
	for range linksMax {
		if f, ok := a.files[name]; ok {
			return f, nil
		}
		target, ok := a.links[name]
		if !ok {
			return nil, invalid("the archive has no %s: it is truncated or not whole", name)
		}
		name = target
	}
	return nil, invalid("%q: too many links", name)
}

// source reads documents of the archive.
func (a *archive) source(_ context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	f, ok := a.blobs[d.Digest]
	switch {
	case !ok:
		return nil, invalid("the archive does not have it: it is truncated or not whole")
	case f.size != d.Size:
		return nil, invalid("has %d bytes where its descriptor says %d", f.size, d.Size)
	case f.bytes == nil, f.size > limit:
		return nil, invalid("has %d bytes; at most %d are read", f.size, limit)
	}
	return f.bytes, nil
}

// commit makes a file a blob of the namespace. One that the namespace has
// already gets the labels.
func (a *archive) commit(ctx context.Context, blobs content.Blobs, f *file, labels map[string]string) error {
	err := a.commitIngest(ctx, f, labels)
	if !errdefs.IsAlreadyExists(err) {
		return err
	}
	return once(ctx, func(ctx context.Context) error { return addLabels(ctx, blobs, f.digest, labels) })
}

func (a *archive) commitIngest(ctx context.Context, f *file, labels map[string]string) error {
	ingest := f.ingest
	if f.bytes != nil {
		var err error
		ingest, err = a.ingest(ctx, content.WriterOptions{Total: f.size, Expected: f.digest})
		if err != nil {
			return err
		}
		if !ingest.whole() {
			if _, err := ingest.Write(f.bytes); err != nil {
				return err
			}
		}
	}
	if ingest == nil {
		return errdefs.ErrAlreadyExists
	}
	return ingest.commit(f.size, f.digest, labels)
}

// abort forgets the ingests that were not committed.
func (a *archive) abort(ctx context.Context) error {
	ctx, cancel := clean(ctx)
	defer cancel()
	var errs []error
	for _, i := range a.staged {
		errs = append(errs, i.abort(ctx))
	}
	return errors.Join(errs...)
}
