package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Put writes the bytes of r, from the first, into an ingest and commits it. An
// ingest that stands somewhere already is gone on with from there. It waits for
// a ref that another writer holds for as long as ctx lives. A blob that the
// namespace has already is fine, and r may be unread. Bytes that are not what o
// says are not kept.
func Put(ctx context.Context, s Ingests, o WriterOptions, r io.Reader, labels map[string]string) error {
	w, err := Wait(ctx, s, o)
	if err == nil {
		err = errors.Join(fill(ctx, w, r, o, labels), w.Close())
	}
	switch {
	case errors.Is(err, errdefs.ErrAlreadyExists):
		return nil
	case errors.Is(err, errdefs.ErrFailedPrecondition):
		// What is there is wrong, and would be gone on with next time.
		if e := s.Abort(ctx, o.Ref); !errors.Is(e, errdefs.ErrNotFound) {
			err = errors.Join(err, e)
		}
	}
	return err
}

const (
	waitMin = 2 * time.Millisecond
	waitMax = 250 * time.Millisecond
)

// Wait is Writer, but waits for a ref that another writer holds for as long as
// ctx lives.
func Wait(ctx context.Context, s Ingests, o WriterOptions) (Writer, error) {
	for pause := waitMin; ; pause = min(2*pause, waitMax) {
		w, err := s.Writer(ctx, o)
		if !errors.Is(err, errdefs.ErrUnavailable) {
			return w, err
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		}
	}
}

func fill(ctx context.Context, w Writer, r io.Reader, o WriterOptions, labels map[string]string) error {
	status, err := w.Status(ctx)
	if err != nil {
		return err
	}
	if status.Offset > 0 && status.Offset == o.Total && o.Expected != "" {
		return w.Commit(ctx, o.Total, o.Expected, labels)
	}
	if err := skip(r, status.Offset); err != nil {
		return err
	}
	n, err := io.CopyBuffer(onlyWriter{w}, onlyReader{r}, make([]byte, 1<<20))
	if err != nil {
		return err
	}
	return w.Commit(ctx, status.Offset+n, o.Expected, labels)
}

// onlyWriter and onlyReader keep io.CopyBuffer to its buffer.
type (
	onlyWriter struct{ io.Writer }
	onlyReader struct{ io.Reader }
)

// skip goes on to offset in r.
func skip(r io.Reader, offset int64) error {
	if offset == 0 {
		return nil
	}
	if s, ok := r.(io.Seeker); ok {
		_, err := s.Seek(offset, io.SeekCurrent)
		return err
	}
	_, err := io.CopyN(io.Discard, r, offset)
	return err
}

// ReadAll returns a whole blob and vouches for its bytes: [errdefs.ErrNotFound]
// as for Info, [errdefs.ErrOutOfRange] if it has more than sizeMax of them, and
// [errdefs.ErrDataLoss] if they are not what d says.
func ReadAll(ctx context.Context, s Blobs, d digest.Digest, sizeMax int64) ([]byte, error) {
	r, err := s.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if r.Size() > sizeMax {
		return nil, fmt.Errorf("blob %s has %d bytes, and at most %d are read: %w", d, r.Size(), sizeMax, errdefs.ErrOutOfRange)
	}
	b := make([]byte, r.Size())
	if n, err := r.ReadAt(b, 0); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = errdefs.ErrDataLoss
		}
		return nil, fmt.Errorf("blob %s ends after %d bytes of %d: %w", d, n, len(b), err)
	}
	if d.Algorithm().FromBytes(b) != d {
		return nil, fmt.Errorf("blob %s has other bytes than it says: %w", d, errdefs.ErrDataLoss)
	}
	return b, nil
}
