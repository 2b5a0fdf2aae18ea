// Package arrival reads blobs that may still be on their way into the content
// store.
package arrival

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
)

// StallTime is how long the content store may send nothing of a blob, and an
// ingest may bring nothing.
const StallTime = 30 * time.Second

// goneTime is how long there is neither an ingest nor its blob before it is
// believed that there will not be: a commit may show the end of the one before
// the other.
const goneTime = 2 * time.Second

// How often it is asked how far an ingest is: soon after it moved, and less often
// the longer it does not.
const (
	pollMin = 2 * time.Millisecond
	pollMax = 100 * time.Millisecond
)

// blobTime is how often it is asked for the blob while there is an ingest: others
// may bring it, and the ingest may be left over from somebody who has gone.
const blobTime = time.Second

// ErrOther says that what was read of an ingest is not what is there any more: it
// was begun anew. The blob, when there is one, is to be read from its beginning.
var ErrOther = errors.New("the bytes of the ingest were replaced while they were read")

// ErrNotYet says that an ingest cannot be read: its file is not to be had, or it
// has ended since. The blob may be there some time.
var ErrNotYet = errors.New("the ingest cannot be read before it is a blob")

// A Blob is one that is there, or arrives.
type Blob struct {
	Store  content.Store
	Files  content.Files // of the same namespace; nil where there are none
	Digest digest.Digest
	Size   int64  // 0 if unknown
	Ingest string // ref of what brings it; empty if it is there

	// Whole reads nothing before the blob is committed.
	Whole bool

	// Read counts the bytes that were read.
	Read *atomic.Int64

	Stall time.Duration // instead of StallTime, if it is not 0

	begun bool // the ingest was there once
	there bool // the blob was
}

func (b *Blob) stallTime() time.Duration {
	if b.Stall != 0 {
		return b.Stall
	}
	return StallTime
}

// Await returns when there is something to read. Without an ingest that is at
// once. One that has begun is [errdefs.ErrNotFound] when it ends without a blob,
// and [errdefs.ErrUnavailable] when nothing comes for long; for one that has not
// it waits.
func (b *Blob) Await(ctx context.Context) error {
	if b.Ingest == "" {
		return ctx.Err()
	}
	w := b.watch()
	for {
		there, err := w.look(ctx)
		if err != nil || there {
			return err
		}
		if w.begun && w.offset > 0 && b.Files != nil && !b.Whole {
			return nil
		}
		if err := w.pause(ctx); err != nil {
			return err
		}
	}
}

// A watch looks how far an ingest is.
type watch struct {
	*Blob
	started time.Time // of the ingest
	offset  int64
	moved   time.Time // when it was last further
	gone    time.Time // since when it is not there; zero if it is
	asked   time.Time // when it was last asked for the blob
	wait    time.Duration
}

func (b *Blob) watch() *watch { return &watch{Blob: b, moved: time.Now(), wait: pollMin} }

// look tells whether the blob is there.
func (w *watch) look(ctx context.Context) (there bool, err error) {
	st, err := w.Store.Status(ctx, w.Ingest)
	switch {
	case err == nil:
		if !w.begun || st.Offset != w.offset || !st.StartedAt.Equal(w.started) {
			w.begun, w.started, w.offset = true, st.StartedAt, st.Offset
			w.moved, w.wait = time.Now(), pollMin
		}
		w.gone = time.Time{}
		if time.Since(w.asked) < blobTime {
			return false, nil
		}
	case errors.Is(err, errdefs.ErrUnavailable):
		return false, nil // the store starts again
	case !errors.Is(err, errdefs.ErrNotFound):
		return false, err
	}
	// The ingest is no more before the blob is there, or was never.
	w.asked = time.Now()
	arrives := err == nil
	switch _, err := w.Store.Info(ctx, w.Digest); {
	case err == nil:
		w.there = true
		return true, nil
	case errors.Is(err, errdefs.ErrUnavailable):
		return false, nil
	case !errors.Is(err, errdefs.ErrNotFound):
		return false, err
	case arrives:
		return false, nil
	case w.begun && w.gone.IsZero():
		w.gone = time.Now()
	case w.begun && time.Since(w.gone) > goneTime:
		return false, fmt.Errorf("blob %s: ingest %s ended without it: %w", w.Digest, w.Ingest, errdefs.ErrNotFound)
	}
	w.moved = time.Now() // an ingest that has not begun does not stall
	return false, nil
}

// pause waits until it is worth another look.
func (w *watch) pause(ctx context.Context) error {
	if time.Since(w.moved) > w.stallTime() {
		return fmt.Errorf("ingest %s brings nothing for %v: %w", w.Ingest, w.stallTime(), errdefs.ErrUnavailable)
	}
	timer := time.NewTimer(w.wait)
	defer timer.Stop()
	w.wait = min(2*w.wait, pollMax)
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Open returns the bytes, from the first to the last, after Await. They are not
// checked: an ingest may become another blob, or none. The error of a reader that
// cannot go on with what it has read is ErrOther. Where Await did not find the blob
// and there is nothing to follow, it is ErrNotYet: whoever has a place among those
// who extract is not to wait with it. Whole is for both.
func (b *Blob) Open(ctx context.Context) (io.ReadCloser, error) {
	if b.Ingest != "" && !b.there && !b.Whole && b.Files != nil {
		f, st, err := b.Files.OpenIngest(ctx, b.Ingest)
		switch {
		case err == nil:
			w := b.watch()
			w.begun, w.started, w.offset = true, st.StartedAt, st.Offset
			return &follower{ctx: ctx, watch: w, file: f}, nil
		case !errors.Is(err, errdefs.ErrNotFound) && !errors.Is(err, errdefs.ErrUnavailable):
			return nil, err
		}
		// It may have been committed since.
		if _, e := b.Store.Info(ctx, b.Digest); e != nil {
			return nil, fmt.Errorf("%w: %v", ErrNotYet, err)
		}
	}
	return b.open(ctx, 0)
}

// A follower reads the file of an ingest, as far as it is, and goes on with the
// blob when it has become one.
type follower struct {
	ctx   context.Context
	watch *watch
	file  *os.File
	at    int64
	blob  io.ReadCloser // once there is one
}

// Read implements io.Reader.
func (f *follower) Read(p []byte) (int, error) {
	for {
		if f.blob != nil {
			return f.blob.Read(p)
		}
		w := f.watch
		if f.at < w.offset {
			n, err := f.file.ReadAt(p[:min(int64(len(p)), w.offset-f.at)], f.at)
			f.at += int64(n)
			if w.Read != nil {
				w.Read.Add(int64(n))
			}
			if n > 0 {
				return n, nil
			}
			if errors.Is(err, io.EOF) {
				err = ErrOther // it is shorter than it was
			}
			return 0, err
		}
		if w.Size != 0 && f.at >= w.Size {
			return 0, io.EOF
		}
		if err := f.advance(); err != nil {
			return 0, err
		}
	}
}

// advance waits until there is more.
func (f *follower) advance() error {
	w := f.watch
	for {
		started := w.started
		there, err := w.look(f.ctx)
		switch {
		case err != nil:
			return err
		case there:
			// The same file, under another name; or another writer was faster,
			// whose bytes are the same if these were right.
			f.blob, err = w.open(f.ctx, f.at)
			return err
		case w.offset < f.at || !w.started.Equal(started):
			return ErrOther
		case w.offset > f.at:
			return nil
		}
		if err := w.pause(f.ctx); err != nil {
			return err
		}
	}
}

// Close implements io.Closer.
func (f *follower) Close() error {
	err := f.file.Close()
	if f.blob != nil {
		err = errors.Join(err, f.blob.Close())
	}
	return err
}
