package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
)

// An ingest is a blob being written by a client that has its bytes once: when
// the daemon restarts it goes on where the daemon has got to.
type ingest struct {
	ctx     context.Context // of the whole import or put
	ingests content.Ingests
	o       content.WriterOptions
	w       content.Writer
	offset  int64 // of what has been acknowledged
	done    bool  // nothing is left to abort
	asked   bool  // for a commit, of which the answer was lost

	waiting func() // is called before it is tried again, unless it is nil
}

// errMoved says that others have written the same ingest.
var errMoved = fmt.Errorf("others write it too: %w", errdefs.ErrAborted)

// newIngest starts an ingest. It is [errdefs.ErrAlreadyExists] if the namespace
// has the blob.
func newIngest(ctx context.Context, ingests content.Ingests, o content.WriterOptions) (*ingest, error) {
	i := &ingest{ctx: ctx, ingests: ingests, o: o}
	return i, i.open()
}

// open takes the ingest in hand, for the first time or again.
func (i *ingest) open() error {
	return again(i.ctx, 0, func(ctx context.Context, repeated bool) error {
		if repeated && i.waiting != nil {
			i.waiting()
		}
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

// openAfterOthers is open, but waits for other writers for as long as the
// context lives. They may be writing the same blob, which is
// [errdefs.ErrAlreadyExists] once they have.
func (i *ingest) openAfterOthers() error {
	for {
		err := i.open()
		if !errdefs.IsUnavailable(err) {
			return err
		}
		if e := i.ctx.Err(); e != nil {
			return e
		}
		// Whether a ref is held or the daemon away, only another question tells.
		if _, e := i.ingests.Status(i.ctx, i.o.Ref); e != nil {
			return err
		}
	}
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
			return written, fmt.Errorf("ingest %s: it is at %d where it was at %d: %w", i.o.Ref, i.offset, start, errMoved)
		}
		if written += int(got); written == len(b) {
			return written, nil
		}
	}
}

// commit makes the ingest a blob. One that the namespace has got meanwhile is
// [errdefs.ErrAlreadyExists].
func (i *ingest) commit(size int64, d digest.Digest, labels map[string]string) error {
	for {
		err := i.w.Commit(i.ctx, size, d, labels)
		if !errors.Is(err, errdefs.ErrUnavailable) {
			i.done = notExists(err) == nil
			return err
		}
		i.w.Close()
		i.asked = true
		i.o.Expected = d // if it was committed it says so now
		if err := i.open(); err != nil {
			i.done = errors.Is(err, errdefs.ErrAlreadyExists)
			return err
		}
	}
}

// close lets go of the ref and keeps the bytes.
func (i *ingest) close() error {
	if i.w == nil {
		return nil
	}
	// What a daemon that went away says of it is known already.
	if err := i.w.Close(); !errdefs.IsUnavailable(err) && i.ctx.Err() == nil {
		return err
	}
	return nil
}

// abort forgets an ingest that was not committed.
func (i *ingest) abort(ctx context.Context) error {
	defer i.w.Close()
	if i.done {
		return nil
	}
	return once(ctx, func(ctx context.Context) error { return onlyDone(i.ingests.Abort(ctx, i.o.Ref)) })
}

// forget is abort, also when the caller has gone away.
func (i *ingest) forget() error {
	if i.w == nil {
		return nil
	}
	ctx, cancel := clean(i.ctx)
	defer cancel()
	return i.abort(ctx)
}
