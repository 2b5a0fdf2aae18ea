package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/content"
)

// An ingest is a blob being written by a client that has its bytes once: when
// the daemon restarts it goes on where the daemon has got to.
type ingest struct {
	ctx     context.Context // of the whole import
	ingests content.Ingests
	o       content.WriterOptions
	w       content.Writer
	offset  int64 // of what has been acknowledged
	done    bool  // nothing is left to abort
}

// newIngest starts an ingest. It is [errdefs.ErrAlreadyExists] if the namespace
// has the blob.
func newIngest(ctx context.Context, ingests content.Ingests, o content.WriterOptions) (*ingest, error) {
	i := &ingest{ctx: ctx, ingests: ingests, o: o}
	return i, i.open()
}

// open takes the ingest in hand, for the first time or again.
func (i *ingest) open() error {
	return again(i.ctx, 0, func(ctx context.Context, _ bool) error {
		w, err := i.ingests.Writer(ctx, i.o)
		if err != nil {
			return err
		}
		status, err := w.Status(ctx)
		if err != nil {
			w.Close()
			return err
		}
		i.w, i.offset = w, status.Offset
		return nil
	})
}

// whole says whether all bytes are there: the store may have had them, for
// another namespace.
func (i *ingest) whole() bool { return i.o.Total > 0 && i.offset == i.o.Total }

// Write implements [io.Writer].
func (i *ingest) Write(b []byte) (int, error) {
	written := 0
	for {
		start := i.offset
		n, err := i.w.Write(b[written:])
		if err == nil {
			i.offset += int64(n)
			return written + n, nil
		}
		if !errors.Is(err, errdefs.ErrUnavailable) {
			return written, err
		}
		i.w.Close()
		if err := i.open(); err != nil {
			return written, err
		}
		// Of what was sent, the daemon has some, all or nothing.
		got := i.offset - start
		if got < 0 || got > int64(len(b)-written) {
			return written, fmt.Errorf("ingest %s: it is at %d where it was at %d: %w", i.o.Ref, i.offset, start, errdefs.ErrAborted)
		}
		if written += int(got); written == len(b) {
			return written, nil
		}
	}
}

// commit makes the ingest a blob. One that the namespace has got meanwhile is
// [errdefs.ErrAlreadyExists].
func (i *ingest) commit(f *file, labels map[string]string) error {
	for {
		err := i.w.Commit(i.ctx, f.size, f.digest, labels)
		if !errors.Is(err, errdefs.ErrUnavailable) {
			i.done = notExists(err) == nil
			return err
		}
		i.w.Close()
		i.o.Expected = f.digest // if it was committed it says so now
		if err := i.open(); err != nil {
			i.done = errors.Is(err, errdefs.ErrAlreadyExists)
			return err
		}
	}
}

// abort forgets an ingest that was not committed.
func (i *ingest) abort(ctx context.Context) error {
	defer i.w.Close()
	if i.done {
		return nil
	}
	return once(ctx, func(ctx context.Context) error { return onlyDone(i.ingests.Abort(ctx, i.o.Ref)) })
}
