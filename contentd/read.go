package contentd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/content"
)

// Open implements [content.Blobs].
func (c *scoped) Open(ctx context.Context, d digest.Digest) (content.Reader, error) {
	info, err := c.Info(ctx, d)
	if err != nil {
		return nil, err
	}
	r, err := c.openBlob(d, info.Size)
	if !errors.Is(err, errNotWhole) {
		return r, err
	}
	// Deleted, or collected and committed again, since Info; or it is lost.
	defer c.lock(d)()
	if info, err = c.Info(ctx, d); err != nil {
		return nil, err
	}
	if r, err = c.openBlob(d, info.Size); errors.Is(err, errNotWhole) {
		c.lose(d, err)
		return nil, missing(d)
	}
	return r, err
}

// errNotWhole says that a blob has no file, or one of another size.
var errNotWhole = errors.New("its file is not whole")

// openBlob returns only what has as many bytes as its record says.
func (s *Store) openBlob(d digest.Digest, size int64) (content.Reader, error) {
	f, err := os.OpenFile(s.path(d), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", err, errNotWhole)
	}
	if err != nil {
		return nil, kind(err)
	}
	fi, err := f.Stat()
	if err == nil && fi.Size() != size {
		err = fmt.Errorf("%d bytes, not %d: %w", fi.Size(), size, errNotWhole)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &reader{f: f, size: size}, nil
}

// A reader reads from a file that is open, whatever becomes of its name.
type reader struct {
	f    *os.File
	size int64
}

var _ io.ReaderAt = (*reader)(nil)

func (r *reader) ReadAt(p []byte, off int64) (int, error) { return r.f.ReadAt(p, off) }

func (r *reader) Size() int64 { return r.size }

func (r *reader) Close() error { return r.f.Close() }
