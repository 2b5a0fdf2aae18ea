package contentrpc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/namespace"
)

// WithHandles returns stores that read and write bytes as files where h has
// them, and are s in everything else. Where h has none it is s in that too: what
// a store answers is the same.
func WithHandles(s content.Stores, h *Handles) content.FileStores {
	return handledStores{s, h}
}

type handledStores struct {
	content.Stores
	h *Handles
}

func (s handledStores) In(scope namespace.Scope) content.Store {
	return handled{Store: s.Stores.In(scope), h: s.h, scope: scope}
}

// Files implements [content.FileStores].
func (s handledStores) Files(scope namespace.Scope) content.Files { return s.h.Files(scope) }

type handled struct {
	content.Store
	h     *Handles
	scope namespace.Scope
}

var (
	_ content.Store  = handled{}
	_ content.Reader = (*fileReader)(nil)
	_ content.Writer = (*fileWriter)(nil)
)

// Open implements [content.Blobs].
func (s handled) Open(ctx context.Context, d digest.Digest) (content.Reader, error) {
	f, size, err := s.h.open(ctx, s.scope, d)
	if errors.Is(err, errAway) {
		return s.Store.Open(ctx, d)
	}
	if err != nil {
		return nil, err
	}
	return &fileReader{f: f, size: size}, nil
}

// A fileReader reads the blob's file.
type fileReader struct {
	f    *os.File
	size int64
}

func (r *fileReader) ReadAt(p []byte, off int64) (int, error) { return r.f.ReadAt(p, off) }

func (r *fileReader) Size() int64 { return r.size }

func (r *fileReader) Close() error { return r.f.Close() }

// Writer implements [content.Ingests].
func (s handled) Writer(ctx context.Context, o content.WriterOptions) (content.Writer, error) {
	if o.Total != 0 && o.Total < s.h.WriteMin {
		return s.Store.Writer(ctx, o)
	}
	r, err := s.h.writer(ctx, s.scope, o)
	if errors.Is(err, errAway) || errors.Is(err, errdefs.ErrNotImplemented) {
		return s.Store.Writer(ctx, o)
	}
	if err != nil {
		return nil, err
	}
	return &fileWriter{store: s.Store, ctx: ctx, remote: r, options: o, offset: r.status.Offset, told: time.Now()}, nil
}

// A fileWriter writes the ingest's file, and asks for the rest.
type fileWriter struct {
	store   content.Store   // the same, over gRPC
	ctx     context.Context // of Writer
	remote  *remoteWriter
	options content.WriterOptions
	file    *os.File      // nil while it is not needed
	offset  int64         // where the next byte goes
	untold  int64         // bytes since the store was told how far they are
	told    time.Time     // when it was
	digest  digest.Digest // once the writer is over
}

// The store is told how far the bytes are after so many, or after so long: it
// may have no room for more, and others who want the same may wait for them as
// long as they come.
const (
	tellBytes = 32 << 20
	tellTime  = time.Second
)

func (w *fileWriter) Write(p []byte) (int, error) {
	if err := w.remote.over; err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := w.ready(int64(len(p))); err != nil {
		return 0, err
	}
	n, err := w.file.WriteAt(p, w.offset)
	w.offset += int64(n)
	w.untold += int64(n)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	return n, err
}

// ready makes sure that what is written next is written to the ingest: the store
// is there, has not forgotten it, and has room.
func (w *fileWriter) ready(size int64) error {
	if err := w.remote.alive(); err != nil {
		w.closeFile()
		return err
	}
	if w.file == nil {
		f, err := w.remote.File(w.ctx)
		if err != nil {
			return err
		}
		w.file = f
	}
	forgotten, err := nameless(w.file)
	if err != nil {
		return err
	}
	if forgotten || w.untold+size > tellBytes || time.Since(w.told) > tellTime {
		_, err = w.Status(w.ctx)
	}
	return err
}

func (w *fileWriter) closeFile() {
	if w.file != nil {
		w.file.Close() // whether the bytes are durable is the store's to find out
		w.file = nil
	}
}

func (w *fileWriter) Status(ctx context.Context) (content.Status, error) {
	st, err := w.remote.Status(ctx)
	w.untold, w.told = 0, time.Now()
	return st, err
}

// Digest is empty if it cannot be asked for: the writer was closed, or its
// connection is gone.
func (w *fileWriter) Digest() digest.Digest {
	if w.digest != "" {
		return w.digest
	}
	d, err := w.remote.Digest(w.ctx)
	if err != nil {
		return ""
	}
	return d
}

func (w *fileWriter) Truncate(ctx context.Context, size int64) error {
	if err := w.remote.Truncate(ctx, size); err != nil {
		return err
	}
	w.offset = size
	return nil
}

// Commit closes the file first: as long as it is open the store does not believe
// that nobody writes it.
func (w *fileWriter) Commit(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) error {
	w.closeFile()
	err := w.remote.Commit(ctx, size, expected, labels)
	if errors.Is(err, errLong) {
		return w.commitLong(ctx, size, expected, labels)
	}
	w.digest = w.remote.sum
	return err
}

// commitLong commits over gRPC what does not fit into a packet: more labels than
// anybody reads.
func (w *fileWriter) commitLong(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) error {
	if err := w.remote.Close(); err != nil {
		return err
	}
	again, err := w.store.Writer(ctx, w.options)
	if err != nil {
		return err
	}
	err = again.Commit(ctx, size, expected, labels)
	w.digest = again.Digest()
	return errors.Join(err, again.Close())
}

// Close returns when the store has let go of the ref.
func (w *fileWriter) Close() error {
	w.closeFile()
	return w.remote.Close()
}
