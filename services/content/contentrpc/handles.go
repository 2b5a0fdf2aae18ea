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

	contentv1 "github.com/gantryd/gantry/proto/gantry/content/v1"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/fdpass"
	"github.com/gantryd/gantry/services/namespace"
)

// WithHandles returns stores that read and write bytes as files where h has
// them, and are s in everything else. Where h has none it is s in that too: what
// a store answers is the same.
func WithHandles(s content.Stores, h *Handles) content.Stores {
	return handledStores{s, h}
}

type handledStores struct {
	content.Stores
	h *Handles
}

func (s handledStores) In(scope namespace.Scope) content.Store {
	return handled{Store: s.Stores.In(scope), h: s.h, scope: scope}
}

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
	c, resp, f, err := s.h.begin(ctx, s.scope, &contentv1.Request{
		Action: &contentv1.Request_Open{Open: &contentv1.OpenRequest{Digest: d.String()}},
	}, askTime)
	if errors.Is(err, errAway) {
		return s.Store.Open(ctx, d)
	}
	if err != nil {
		return nil, err
	}
	s.h.keep(c)
	if f == nil {
		return nil, fmt.Errorf("blob %s came without its file: %w", d, errdefs.ErrInternal)
	}
	return &fileReader{f: f, size: resp.Size}, nil
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
	c, resp, f, err := s.h.begin(ctx, s.scope, &contentv1.Request{
		Action: &contentv1.Request_Write{Write: &contentv1.WriteRequest{Ref: o.Ref, Total: o.Total, Expected: o.Expected.String()}},
	}, startTime)
	if errors.Is(err, errAway) || errors.Is(err, errdefs.ErrNotImplemented) {
		return s.Store.Writer(ctx, o)
	}
	if err != nil {
		return nil, err
	}
	w := &fileWriter{
		store: s.Store, h: s.h, ctx: ctx, conn: c, file: f, options: o,
		status: fromHandleStatus(o.Ref, resp.Status), asked: time.Now(),
	}
	// A writer that is given up lets go of the ref.
	w.unhook = context.AfterFunc(ctx, func() { c.Close() })
	return w, nil
}

// A fileWriter writes the ingest's file, and asks for the rest. Its connection
// holds the ref.
type fileWriter struct {
	store   content.Store // the same, over gRPC
	h       *Handles
	ctx     context.Context // of Writer
	unhook  func() bool
	conn    *fdpass.Conn
	file    *os.File // nil while it is not needed
	options content.WriterOptions
	status  content.Status
	digest  digest.Digest // once the writer is over
	unasked int64         // bytes since the store was told how far they are
	asked   time.Time     // when it was
	over    error         // what every method says once the writer is over
}

const (
	// The store is told how far the bytes are after so many, or after so long:
	// it may have no room for more, and others who want the same may wait for
	// them as long as they come.
	tellBytes = 32 << 20
	tellTime  = time.Second

	// commitTime and commitRate bound a Commit and a Digest, which read every
	// byte.
	commitTime = time.Minute
	commitRate = 32 << 20 // bytes a second, of a slow disk
)

// ask makes a round trip. A connection that breaks is the end of the writer, as
// is the end of its context.
func (w *fileWriter) ask(ctx context.Context, req *contentv1.Request, limit time.Duration) (*contentv1.Response, *os.File, error) {
	resp, f, err := ask(ctx, w.conn, req, limit)
	if err != nil && (errors.Is(err, errBroken) || ctx.Err() != nil) {
		return resp, f, w.end(err)
	}
	return resp, f, err
}

// end ends the writer without a word to the store, which has noticed, or will.
func (w *fileWriter) end(err error) error {
	if e := w.ctx.Err(); e != nil {
		err = e
	}
	w.over = err
	w.unhook()
	w.closeFile()
	w.conn.Close()
	return err
}

// finish ends the writer, of which the store has been told.
func (w *fileWriter) finish() {
	if w.over == nil && w.unhook() {
		w.h.keep(w.conn)
	}
	w.over = fmt.Errorf("writer of ref %s is closed: %w", w.options.Ref, errdefs.ErrFailedPrecondition)
}

func (w *fileWriter) closeFile() {
	if w.file != nil {
		w.file.Close() // whether the bytes are durable is the store's to find out
		w.file = nil
	}
}

func (w *fileWriter) Write(p []byte) (int, error) {
	if w.over != nil {
		return 0, w.over
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := w.ready(int64(len(p))); err != nil {
		return 0, err
	}
	n, err := w.file.WriteAt(p, w.status.Offset)
	w.status.Offset += int64(n)
	w.unasked += int64(n)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	return n, err
}

// ready makes sure that what is written next is written to the ingest: the store
// is there, has not forgotten it, and has room.
func (w *fileWriter) ready(size int64) error {
	if w.conn.Gone() {
		return w.end(errBroken)
	}
	if w.file == nil {
		_, f, err := w.ask(w.ctx, &contentv1.Request{Action: &contentv1.Request_File{File: &contentv1.FileRequest{}}}, w.long())
		if err != nil {
			return err
		}
		w.file = f
	}
	forgotten, err := nameless(w.file)
	if err != nil {
		return err
	}
	if forgotten || w.unasked+size > tellBytes || time.Since(w.asked) > tellTime {
		_, err = w.Status(w.ctx)
	}
	return err
}

// long is the limit of a request that may read every byte.
func (w *fileWriter) long() time.Duration {
	return commitTime + time.Duration(w.status.Offset/commitRate)*time.Second
}

func (w *fileWriter) Status(ctx context.Context) (content.Status, error) {
	if w.over != nil {
		return content.Status{}, w.over
	}
	resp, _, err := w.ask(ctx, &contentv1.Request{Action: &contentv1.Request_Status{Status: &contentv1.StatusRequest{}}}, askTime)
	if err != nil {
		return content.Status{}, err
	}
	// Where the next byte goes is known here.
	w.unasked, w.asked = 0, time.Now()
	offset := w.status.Offset
	w.status = fromHandleStatus(w.options.Ref, resp.Status)
	w.status.Offset = offset
	return w.status, nil
}

// Digest is empty if it cannot be asked for: the writer was closed, or its
// connection is gone.
func (w *fileWriter) Digest() digest.Digest {
	if w.over != nil {
		return w.digest
	}
	resp, _, err := w.ask(w.ctx, &contentv1.Request{Action: &contentv1.Request_Digest{Digest: &contentv1.DigestRequest{}}}, w.long())
	if err != nil {
		return ""
	}
	return digest.Digest(resp.Digest)
}

func (w *fileWriter) Truncate(ctx context.Context, size int64) error {
	if w.over != nil {
		return w.over
	}
	if err := content.CheckTruncate(size, w.status.Offset); err != nil {
		return err
	}
	_, _, err := w.ask(ctx, &contentv1.Request{Action: &contentv1.Request_Truncate{Truncate: &contentv1.TruncateRequest{Size: size}}}, askTime)
	if err == nil {
		w.status.Offset = size
	}
	return err
}

// Commit closes the file first: as long as it is open the store does not believe
// that nobody writes it.
func (w *fileWriter) Commit(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) error {
	if w.over != nil {
		return w.over
	}
	w.closeFile()
	resp, _, err := w.ask(ctx, &contentv1.Request{Action: &contentv1.Request_Commit{Commit: &contentv1.CommitRequest{
		Size: size, Expected: expected.String(), Labels: labels,
	}}}, w.long())
	if errors.Is(err, errLong) {
		return w.commitLong(ctx, size, expected, labels)
	}
	w.digest = digest.Digest(resp.GetDigest())
	if w.over == nil {
		w.finish()
	}
	return err
}

// commitLong commits over gRPC what does not fit into a packet: more labels than
// anybody reads.
func (w *fileWriter) commitLong(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) error {
	if err := w.Close(); err != nil {
		return err
	}
	over, err := w.store.Writer(ctx, w.options)
	if err != nil {
		return err
	}
	err = over.Commit(ctx, size, expected, labels)
	w.digest = over.Digest()
	return errors.Join(err, over.Close())
}

// Close returns when the store has let go of the ref.
func (w *fileWriter) Close() error {
	if w.over != nil {
		w.finish()
		return nil
	}
	w.closeFile()
	_, _, err := w.ask(context.WithoutCancel(w.ctx), &contentv1.Request{Action: &contentv1.Request_Close{Close: &contentv1.CloseRequest{}}}, closeTime)
	if w.over == nil {
		w.finish()
	}
	return err
}
