package contentrpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
)

const (
	// part is how many bytes a message of Write has at most: far below
	// [rpc.MessageMax], and enough that the answers do not count.
	part = 4 << 20

	// closeTime is how long Close waits for the other end to let go of the
	// ref before it breaks the stream off.
	closeTime = 10 * time.Second
)

// NewClient returns the stores at the other end of conn.
func NewClient(conn grpc.ClientConnInterface) content.Stores {
	return stores{api.NewContentClient(conn)}
}

type stores struct{ c api.ContentClient }

func (s stores) In(scope namespace.Scope) content.Store { return client{c: s.c, scope: scope} }

type client struct {
	c     api.ContentClient
	scope namespace.Scope
}

var (
	_ content.Store  = client{}
	_ content.Reader = (*reader)(nil)
	_ content.Writer = (*writer)(nil)
)

func (c client) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	resp, err := c.c.Info(rpc.WithScope(ctx, c.scope), &api.InfoRequest{Digest: d.String()})
	if err != nil {
		return content.Info{}, err
	}
	return fromInfo(resp.Info), nil
}

func (c client) Update(ctx context.Context, info content.Info, fields ...string) (content.Info, error) {
	req := &api.UpdateRequest{Info: toInfo(info)}
	if len(fields) > 0 {
		req.UpdateMask = &fieldmaskpb.FieldMask{Paths: fields}
	}
	resp, err := c.c.Update(rpc.WithScope(ctx, c.scope), req)
	if err != nil {
		return content.Info{}, err
	}
	return fromInfo(resp.Info), nil
}

func (c client) List(ctx context.Context, filters ...string) iter.Seq2[content.Info, error] {
	return func(yield func(content.Info, error) bool) {
		ctx, cancel := context.WithCancel(rpc.WithScope(ctx, c.scope))
		defer cancel()
		stream, err := c.c.List(ctx, &api.ListContentRequest{Filters: filters})
		if err != nil {
			yield(content.Info{}, err)
			return
		}
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(content.Info{}, err)
				return
			}
			for _, p := range m.Info {
				if !yield(fromInfo(p), nil) {
					return
				}
			}
		}
	}
}

func (c client) Delete(ctx context.Context, d digest.Digest) error {
	_, err := c.c.Delete(rpc.WithScope(ctx, c.scope), &api.DeleteContentRequest{Digest: d.String()})
	return err
}

// Open asks for the size, so that an absent blob is an error here and not of
// the first read.
func (c client) Open(ctx context.Context, d digest.Digest) (content.Reader, error) {
	info, err := c.Info(ctx, d)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(rpc.WithScope(ctx, c.scope))
	return &reader{c: c.c, ctx: ctx, cancel: cancel, digest: d, size: info.Size}, nil
}

type reader struct {
	c      api.ContentClient
	ctx    context.Context // of Open
	cancel context.CancelFunc
	digest digest.Digest
	size   int64
}

func (r *reader) Size() int64 { return r.size }

func (r *reader) Close() error {
	r.cancel()
	return nil
}

func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, errdefs.ErrInvalidArgument)
	}
	short := off > r.size-int64(len(p))
	if short {
		p = p[:max(r.size-off, 0)]
	}
	n, err := r.read(p, off)
	if err == nil && short {
		err = io.EOF
	}
	return n, err
}

// read fills p, which is inside the blob.
func (r *reader) read(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	stream, err := r.c.Read(ctx, &api.ReadContentRequest{Digest: r.digest.String(), Offset: off, Size: int64(len(p))})
	if err != nil {
		return 0, err
	}
	n := 0
	for n < len(p) {
		m := readInto{to: p[n:]}
		err := stream.RecvMsg(&m)
		if errors.Is(err, io.EOF) {
			return n, io.ErrUnexpectedEOF
		}
		if err != nil {
			return n, err
		}
		n += m.n + copy(m.to, m.Data)
	}
	return n, nil
}

func (c client) Status(ctx context.Context, ref string) (content.Status, error) {
	resp, err := c.c.Status(rpc.WithScope(ctx, c.scope), &api.StatusRequest{Ref: ref})
	if err != nil {
		return content.Status{}, err
	}
	return fromStatus(resp.Status), nil
}

func (c client) ListStatuses(ctx context.Context, filters ...string) ([]content.Status, error) {
	resp, err := c.c.ListStatuses(rpc.WithScope(ctx, c.scope), &api.ListStatusesRequest{Filters: filters})
	if err != nil {
		return nil, err
	}
	var all []content.Status
	for _, p := range resp.Statuses {
		all = append(all, fromStatus(p))
	}
	return all, nil
}

func (c client) Abort(ctx context.Context, ref string) error {
	_, err := c.c.Abort(rpc.WithScope(ctx, c.scope), &api.AbortRequest{Ref: ref})
	return err
}

// Writer opens the stream that holds the ref. It ends with ctx, so that a writer
// that is given up lets go of the ref.
func (c client) Writer(ctx context.Context, o content.WriterOptions) (content.Writer, error) {
	ctx, cancel := context.WithCancel(rpc.WithScope(ctx, c.scope))
	stream, err := c.c.Write(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &writer{stream: stream, cancel: cancel, options: o}
	if _, err := w.send(&api.WriteContentRequest{
		Action:   api.WriteAction_STAT,
		Ref:      o.Ref,
		Total:    o.Total,
		Expected: o.Expected.String(),
	}); err != nil {
		return nil, err
	}
	return w, nil
}

type writer struct {
	stream  api.Content_WriteClient
	cancel  context.CancelFunc
	options content.WriterOptions
	offset  int64
	digest  digest.Digest
	over    error // what every method says once the stream is over
}

// send makes one round trip. An error is the end of the stream.
func (w *writer) send(req *api.WriteContentRequest) (*api.WriteContentResponse, error) {
	if w.over != nil {
		return nil, w.over
	}
	// The reason of a failed Send is what Recv says.
	if err := w.stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
		return nil, w.end(err)
	}
	resp, err := w.stream.Recv()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, w.end(err)
	}
	w.offset = resp.Offset
	w.digest = digest.Digest(resp.Digest)
	return resp, nil
}

func (w *writer) end(err error) error {
	w.over = err
	w.cancel()
	return err
}

func (w *writer) Write(p []byte) (int, error) {
	if w.over != nil {
		return 0, w.over
	}
	n := 0
	for data := range slices.Chunk(p, part) {
		from := w.offset
		_, err := w.send(&api.WriteContentRequest{Action: api.WriteAction_WRITE, Offset: from, Data: data})
		if err != nil {
			return n, err
		}
		wrote := int(w.offset - from)
		if n += wrote; wrote != len(data) {
			return n, io.ErrShortWrite
		}
	}
	return n, nil
}

func (w *writer) Status(ctx context.Context) (content.Status, error) {
	defer w.within(ctx)()
	resp, err := w.send(&api.WriteContentRequest{Action: api.WriteAction_STAT})
	if err != nil {
		return content.Status{}, err
	}
	return content.Status{
		Ref:       w.options.Ref,
		Offset:    resp.Offset,
		Total:     resp.Total,
		Expected:  w.options.Expected,
		StartedAt: fromTime(resp.StartedAt),
		UpdatedAt: fromTime(resp.UpdatedAt),
	}, nil
}

// within makes the end of ctx the end of the stream, until it is called off.
func (w *writer) within(ctx context.Context) (off func()) {
	stop := context.AfterFunc(ctx, w.cancel)
	return func() { stop() }
}

func (w *writer) Digest() digest.Digest { return w.digest }

// Truncate sends a write of nothing at offset 0, which is how the service says
// it.
func (w *writer) Truncate(ctx context.Context, size int64) error {
	if w.over != nil {
		return w.over
	}
	if err := content.CheckTruncate(size, w.offset); err != nil || size == w.offset {
		return err
	}
	defer w.within(ctx)()
	_, err := w.send(&api.WriteContentRequest{Action: api.WriteAction_WRITE})
	return err
}

func (w *writer) Commit(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) error {
	defer w.Close()
	// It would end the stream too, but perhaps after the answer.
	if err := ctx.Err(); err != nil {
		return err
	}
	// The service takes a size that is no size for one that was not said.
	if _, err := content.NewClaim(w.options, size, expected, labels); err != nil {
		return err
	}
	defer w.within(ctx)()
	_, err := w.send(&api.WriteContentRequest{
		Action:   api.WriteAction_COMMIT,
		Offset:   w.offset,
		Total:    size,
		Expected: expected.String(),
		Labels:   labels,
	})
	return err
}

// Close returns when the other end has let go of the ref.
func (w *writer) Close() error {
	streaming := w.over == nil
	w.over = fmt.Errorf("writer of ref %s is closed: %w", w.options.Ref, errdefs.ErrFailedPrecondition)
	if !streaming {
		return nil
	}
	defer w.cancel()
	timer := time.AfterFunc(closeTime, w.cancel)
	defer timer.Stop()
	if err := w.stream.CloseSend(); err != nil {
		return err
	}
	for {
		if _, err := w.stream.Recv(); err != nil {
			return end(err)
		}
	}
}
