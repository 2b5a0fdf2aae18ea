package contentrpc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	contentv1 "github.com/gantryd/gantry/proto/gantry/content/v1"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/fdpass"
	"github.com/gantryd/gantry/services/namespace"
)

// Files returns the files of a scope, for who wants them and nothing else: while
// nobody hands them out they are [errdefs.ErrUnavailable].
func (h *Handles) Files(scope namespace.Scope) content.Files { return remoteFiles{h, scope} }

type remoteFiles struct {
	h     *Handles
	scope namespace.Scope
}

var (
	_ content.Files      = remoteFiles{}
	_ content.FileWriter = (*remoteWriter)(nil)
)

// OpenFile implements [content.Files].
func (r remoteFiles) OpenFile(ctx context.Context, d digest.Digest) (*os.File, error) {
	f, _, err := r.h.open(ctx, r.scope, d)
	return f, orUnavailable(err)
}

// OpenIngest implements [content.Files].
func (r remoteFiles) OpenIngest(ctx context.Context, ref string) (*os.File, content.Status, error) {
	c, resp, f, err := r.h.begin(ctx, r.scope, &contentv1.Request{
		Action: &contentv1.Request_OpenIngest{OpenIngest: &contentv1.OpenIngestRequest{Ref: ref}},
	}, askTime)
	if err != nil {
		return nil, content.Status{}, orUnavailable(err)
	}
	r.h.keep(c)
	if f == nil {
		return nil, content.Status{}, fmt.Errorf("ingest %s came without its file: %w", ref, errdefs.ErrInternal)
	}
	return f, fromHandleStatus(ref, resp.Status), nil
}

// FileWriter implements [content.Files].
func (r remoteFiles) FileWriter(ctx context.Context, o content.WriterOptions) (content.FileWriter, error) {
	w, err := r.h.writer(ctx, r.scope, o)
	if err != nil {
		return nil, orUnavailable(err)
	}
	return w, nil
}

func orUnavailable(err error) error {
	if errors.Is(err, errAway) {
		return fmt.Errorf("%v: %w", err, errdefs.ErrUnavailable)
	}
	return err
}

// open returns the file of a blob and how many bytes it has.
func (h *Handles) open(ctx context.Context, scope namespace.Scope, d digest.Digest) (*os.File, int64, error) {
	c, resp, f, err := h.begin(ctx, scope, &contentv1.Request{
		Action: &contentv1.Request_Open{Open: &contentv1.OpenRequest{Digest: d.String()}},
	}, askTime)
	if err != nil {
		return nil, 0, err
	}
	h.keep(c)
	if f == nil {
		return nil, 0, fmt.Errorf("blob %s came without its file: %w", d, errdefs.ErrInternal)
	}
	return f, resp.Size, nil
}

// writer opens an ingest, whose connection holds the ref. It ends with ctx, so
// that a writer that is given up lets go of the ref.
func (h *Handles) writer(ctx context.Context, scope namespace.Scope, o content.WriterOptions) (*remoteWriter, error) {
	c, resp, f, err := h.begin(ctx, scope, &contentv1.Request{
		Action: &contentv1.Request_Write{Write: &contentv1.WriteRequest{Ref: o.Ref, Total: o.Total, Expected: o.Expected.String()}},
	}, startTime)
	if err != nil {
		return nil, err
	}
	w := &remoteWriter{h: h, ctx: ctx, conn: c, ref: o.Ref, status: fromHandleStatus(o.Ref, resp.Status), first: f, borrows: f == nil}
	w.unhook = context.AfterFunc(ctx, func() { c.Close() })
	return w, nil
}

// A remoteWriter is an ingest at the other end of its connection.
type remoteWriter struct {
	h       *Handles
	ctx     context.Context // of FileWriter
	unhook  func() bool
	conn    *fdpass.Conn
	ref     string
	status  content.Status // as it was last told
	first   *os.File       // came unasked, and was not asked for yet
	borrows bool
	sum     digest.Digest // once the writer is over
	over    error         // what every method says once the writer is over
}

// commitTime and commitRate bound what reads every byte.
const (
	commitTime = time.Minute
	commitRate = 32 << 20 // bytes a second, of a slow disk
)

// long is the limit of a request that may read every byte. How many there are is
// not known here, but how many there were.
func (w *remoteWriter) long(size int64) time.Duration {
	return commitTime + time.Duration(max(w.status.Offset, size)/commitRate)*time.Second
}

// ask makes a round trip. A connection that breaks is the end of the writer, as
// is the end of its context.
func (w *remoteWriter) ask(ctx context.Context, req *contentv1.Request, limit time.Duration) (*contentv1.Response, *os.File, error) {
	if w.over != nil {
		return nil, nil, w.over
	}
	resp, f, err := ask(ctx, w.conn, req, limit)
	if err != nil && (errors.Is(err, errBroken) || ctx.Err() != nil) {
		return resp, nil, w.end(err)
	}
	return resp, f, err
}

// end ends the writer without a word to the store, which has noticed, or will.
func (w *remoteWriter) end(err error) error {
	if e := w.ctx.Err(); e != nil {
		err = e
	}
	w.over = err
	w.unhook()
	w.dropFirst()
	w.conn.Close()
	return err
}

// finish ends the writer, of which the store has been told.
func (w *remoteWriter) finish() {
	if w.over == nil && w.unhook() {
		w.h.keep(w.conn)
	}
	w.over = fmt.Errorf("writer of ref %s is closed: %w", w.ref, errdefs.ErrFailedPrecondition)
}

func (w *remoteWriter) dropFirst() {
	if w.first != nil {
		w.first.Close()
		w.first = nil
	}
}

// alive is what every method says if the store has gone away, or the writer was
// given up.
func (w *remoteWriter) alive() error {
	if w.over == nil && (w.ctx.Err() != nil || w.conn.Gone()) {
		return w.end(errBroken)
	}
	return w.over
}

// File implements [content.FileWriter].
func (w *remoteWriter) File(ctx context.Context) (*os.File, error) {
	if f := w.first; f != nil {
		w.first = nil
		return f, nil
	}
	_, f, err := w.ask(ctx, &contentv1.Request{Action: &contentv1.Request_File{File: &contentv1.FileRequest{}}}, w.long(0))
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, fmt.Errorf("ingest %s came without its file: %w", w.ref, errdefs.ErrInternal)
	}
	w.borrows = false
	return f, nil
}

// Borrows implements [content.FileWriter].
func (w *remoteWriter) Borrows() bool { return w.borrows }

// Status implements [content.FileWriter].
func (w *remoteWriter) Status(ctx context.Context) (content.Status, error) {
	resp, _, err := w.ask(ctx, &contentv1.Request{Action: &contentv1.Request_Status{Status: &contentv1.StatusRequest{}}}, askTime)
	if err != nil {
		return content.Status{}, err
	}
	w.status = fromHandleStatus(w.ref, resp.Status)
	return w.status, nil
}

// Digest implements [content.FileWriter].
func (w *remoteWriter) Digest(ctx context.Context) (digest.Digest, error) {
	if w.sum != "" {
		return w.sum, nil
	}
	resp, _, err := w.ask(ctx, &contentv1.Request{Action: &contentv1.Request_Digest{Digest: &contentv1.DigestRequest{}}}, w.long(0))
	return digest.Digest(resp.GetDigest()), err
}

// Truncate implements [content.FileWriter].
func (w *remoteWriter) Truncate(ctx context.Context, size int64) error {
	_, _, err := w.ask(ctx, &contentv1.Request{Action: &contentv1.Request_Truncate{Truncate: &contentv1.TruncateRequest{Size: size}}}, askTime)
	if err == nil && size == 0 {
		w.borrows = false
	}
	return err
}

// Commit implements [content.FileWriter].
func (w *remoteWriter) Commit(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) error {
	w.dropFirst()
	resp, _, err := w.ask(ctx, &contentv1.Request{Action: &contentv1.Request_Commit{Commit: &contentv1.CommitRequest{
		Size: size, Expected: expected.String(), Labels: labels,
	}}}, w.long(size))
	if errors.Is(err, errLong) {
		return err
	}
	w.sum = digest.Digest(resp.GetDigest())
	if w.over == nil {
		w.finish()
	}
	return err
}

// Close implements [content.FileWriter]. It returns when the store has let go of
// the ref.
func (w *remoteWriter) Close() error {
	w.dropFirst()
	if w.over != nil {
		w.finish()
		return nil
	}
	_, _, err := w.ask(context.WithoutCancel(w.ctx), &contentv1.Request{Action: &contentv1.Request_Close{Close: &contentv1.CloseRequest{}}}, closeTime)
	if w.over == nil {
		w.finish()
	}
	return err
}
