package contentd

import (
	"context"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/lease"
)

// A writer holds a ref. What it writes is a file of ingest/, or nothing as long
// as it borrows a blob that another namespace has.
type writer struct {
	c       *scoped
	ctx     context.Context // of the call that opened it
	options content.WriterOptions
	since   time.Time
	fetch   *content.Fetch // nil if nobody waits for its bytes

	name      string // in ingest/
	file      file   // nil while it borrows
	fresh     bool   // the file is not durably in ingest/
	dirty     bool   // the file has bytes that are not synced
	unchecked int    // bytes since room was asked
	flushed   int64  // offset up to which the disk has begun to write
	lent      bool   // the file is written by others: see handle.go
	algorithm digest.Algorithm
	hash      hash.Hash     // of what was written
	hashed    int64         // of a file that is lent, how much of it
	sum       digest.Digest // of all, once the writer is over

	// mu guards the fields below it.
	mu       sync.Mutex
	status   content.Status
	lease    lease.Ref // when it was opened
	pending  *ingest   // the record, while the database has none
	borrowed bool
	over     bool
	aborted  bool
	settled  bool // by a commit, for good
}

func (w *writer) held() held { return held{w.c.scope.Name, w.options.Ref} }

// begin borrows the expected blob, or starts or resumes an ingest.
func (w *writer) begin() error {
	if w.options.Expected != "" {
		var err error
		w.fetch, err = w.c.fetches.Start(w.ctx, w.c.scope.Name, w.options, w.lends, w.look())
		if err != nil || w.fetch == nil {
			return err
		}
	}
	if err := w.c.room(0); err != nil {
		return err
	}
	if err := w.openIngest(false); err != nil {
		return err
	}
	return w.orDrop(w.c.room(max(w.options.Total-w.status.Offset, 0)))
}

// lends says whether the policy lets the namespace have what another commits.
func (w *writer) lends(namespace string) bool {
	return w.c.cfg.Sharing == content.Shared || content.Shareable(w.ctx, w.c.needs.Namespaces, namespace)
}

// look returns what borrows the expected blob, if it is there. From the second
// time on, after others were waited for, it looks for everything again.
func (w *writer) look() (there func() (bool, error)) {
	again := false
	return func() (_ bool, err error) {
		if again {
			if w.lease, err = w.c.lookup(w.ctx); err != nil {
				return false, err
			}
			if err := w.already(); err != nil {
				return false, err
			}
		}
		again = true
		return w.tryBorrow()
	}
}

func (w *writer) tryBorrow() (bool, error) {
	ok, err := w.c.mayBorrow(w.ctx, w.options.Expected)
	if err != nil || !ok {
		return false, err
	}
	size, ok, err := w.c.pin(w.options.Expected)
	if err != nil || !ok {
		return false, err
	}
	if w.options.Total != 0 && w.options.Total != size {
		w.c.unpin(w.options.Expected)
		return false, nil
	}
	w.borrow(size)
	return true, nil
}

func (w *writer) borrow(size int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.borrowed = true
	w.status = content.Status{
		Ref: w.options.Ref, Offset: size, Total: size, Expected: w.options.Expected,
		StartedAt: w.since, UpdatedAt: w.since,
	}
}

// usable says why the writer is not, if it is not, and whether it borrows.
func (w *writer) usable() (borrowed bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.over:
		err = fmt.Errorf("writer of ref %s is closed: %w", w.options.Ref, errdefs.ErrFailedPrecondition)
	case w.aborted:
		err = fmt.Errorf("reference %s: %w", w.options.Ref, errdefs.ErrNotFound)
	}
	return w.borrowed, err
}

// current is the status of an ingest that is one: not borrowed, and not over, as
// long as it is for the writer to say.
func (w *writer) current() (content.Status, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	begun := w.status.Ref != "" && !w.borrowed && !w.aborted && !w.settled
	st, ok := w.status, begun && (!w.over || w.pending != nil)
	if ok && w.lent {
		st = w.lentStatus(st)
	}
	return st, ok
}

func (w *writer) isAborted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.aborted
}

// abort ends a writer's ingest, and says whether there was one that had not
// ended before.
func (w *writer) abort() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status.Ref == "" {
		return false // it waits for others to write
	}
	ended := w.settled || w.aborted
	w.aborted = w.aborted || !w.settled
	return !ended
}

// settle says whether a commit has ended the ingest. It is called in the commit's
// transaction, and again if that came to nothing.
func (w *writer) settle(settled bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.settled = settled
}

// moved notes what was written, or dropped.
func (w *writer) moved(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Offset += n
	w.status.UpdatedAt = w.c.now()
	w.fetch.At(w.status.Offset)
}

// roomEvery is how many bytes are written between two looks at the disk.
const roomEvery = 8 << 20

// Write implements [content.Writer].
func (w *writer) Write(p []byte) (int, error) {
	borrowed, err := w.usable()
	if err != nil || len(p) == 0 {
		return 0, err
	}
	if borrowed {
		if err := w.own(w.status.Offset); err != nil {
			return 0, err
		}
	}
	if w.unchecked += len(p); w.unchecked >= roomEvery {
		if err := w.c.room(int64(len(p))); err != nil {
			return 0, err
		}
		w.unchecked = 0
	}
	if w.status.Offset+int64(len(p)) > pendingMax {
		if err := w.enroll(w.ctx); err != nil {
			return 0, err
		}
	}
	return w.append(p)
}

// own copies the first bytes of what it borrows into an ingest.
func (w *writer) own(size int64) error {
	lent := w.status.Offset
	if err := w.copyOf(size); err != nil {
		w.borrow(lent)
		return w.orDrop(err)
	}
	w.c.unpin(w.options.Expected)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.borrowed = false
	return nil
}

func (w *writer) copyOf(size int64) error {
	if err := w.c.room(size); err != nil {
		return err
	}
	blob, err := os.Open(w.c.path(w.options.Expected))
	if err != nil {
		return kind(err)
	}
	defer blob.Close()
	if err := w.openIngest(true); err != nil {
		return err
	}
	r := io.NewSectionReader(blob, 0, size)
	for part := make([]byte, min(size, 1<<20)); w.status.Offset < size; {
		n, err := r.Read(part)
		if err == nil && w.status.Offset+int64(n) > pendingMax {
			err = w.enroll(w.ctx)
		}
		if err == nil {
			_, err = w.append(part[:n])
		}
		if err == nil {
			err = w.ctx.Err()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Status implements [content.Writer].
func (w *writer) Status(context.Context) (content.Status, error) {
	if _, err := w.usable(); err != nil {
		return content.Status{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status, nil
}

// Digest implements [content.Writer].
func (w *writer) Digest() digest.Digest {
	if w.sum != "" {
		return w.sum
	}
	if borrowed, _ := w.usable(); borrowed {
		return w.options.Expected
	}
	if w.lent {
		return "" // not known before Commit
	}
	return digest.NewDigest(w.algorithm, w.hash)
}

// Truncate implements [content.Writer].
func (w *writer) Truncate(ctx context.Context, size int64) error {
	borrowed, err := w.usable()
	if err != nil {
		return err
	}
	if err := content.CheckTruncate(size, w.status.Offset); err != nil || size == w.status.Offset {
		return err
	}
	if borrowed {
		return w.own(0)
	}
	// The order is the promise: a hash that is saved is of bytes that are
	// there. See "What survives a crash".
	if err := w.unsave(ctx); err != nil {
		return err
	}
	if err := w.file.Truncate(0); err != nil {
		return kind(err)
	}
	w.dirty, w.flushed = true, 0
	w.hash.Reset()
	w.moved(-w.status.Offset)
	return nil
}

// Close implements [content.Writer].
func (w *writer) Close() error {
	w.mu.Lock()
	closed := w.over
	w.over = true
	w.mu.Unlock()
	if closed {
		return nil
	}
	w.sum = w.Digest()
	defer w.release()
	return w.keep()
}

// release lets go of the ref.
func (w *writer) release() {
	w.mu.Lock()
	borrowed := w.borrowed
	w.over, w.borrowed = true, false
	w.mu.Unlock()
	if borrowed {
		w.c.unpin(w.options.Expected)
	}
	w.c.mu.Lock()
	if w.c.writers[w.held()] == w {
		delete(w.c.writers, w.held())
	}
	w.c.mu.Unlock()
	w.fetch.End()
}
