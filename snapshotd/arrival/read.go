package arrival

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/content"
)

// open opens the committed blob at an offset.
func (b *Blob) open(ctx context.Context, at int64) (io.ReadCloser, error) {
	limit := b.stallTime()
	ctx, cancel := context.WithCancelCause(ctx)
	stalled := time.AfterFunc(limit, func() {
		cancel(fmt.Errorf("content store sends nothing for %v: %w", limit, errdefs.ErrUnavailable))
	})
	r, err := b.Store.Open(ctx, b.Digest)
	if err != nil {
		stalled.Stop()
		cancel(nil)
		return nil, Cause(ctx, err)
	}
	section := io.NewSectionReader(r, at, max(0, r.Size()-at))
	return &reader{r: r, section: section, limit: limit, read: b.Read, ctx: ctx, stalled: stalled, cancel: cancel}, nil
}

// Cause is the reason why ctx ended, if it ended for one, and else err.
func Cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && !errors.Is(c, ctx.Err()) {
		return c
	}
	return err
}

// A reader reads a blob to its end, within a time for each piece.
type reader struct {
	r       content.Reader
	section *io.SectionReader
	limit   time.Duration
	read    *atomic.Int64
	ctx     context.Context
	stalled *time.Timer
	cancel  context.CancelCauseFunc
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	r.stalled.Reset(r.limit)
	n, err := r.section.Read(p)
	r.stalled.Stop()
	if r.read != nil {
		r.read.Add(int64(n))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = Cause(r.ctx, err)
	}
	return n, err
}

// Close implements io.Closer.
func (r *reader) Close() error {
	r.stalled.Stop()
	err := r.r.Close()
	r.cancel(nil)
	return err
}
