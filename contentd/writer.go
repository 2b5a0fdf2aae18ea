package contentd

import (
	"context"
	"encoding"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
)

// A writer holds a ref. What it writes is a file of ingest/, or nothing as long
// as it borrows a blob that another namespace has.
type writer struct {
	c       *scoped
	ctx     context.Context // of the call that opened it
	options content.WriterOptions
	lease   lease.Ref // at that time
	since   time.Time

	name      string // in ingest/
	file      file   // nil while it borrows
	fresh     bool   // the file is not durably in ingest/
	dirty     bool   // the file has bytes that are not synced
	unchecked int    // bytes since room was asked
	algorithm digest.Algorithm
	hash      hash.Hash     // of what was written
	sum       digest.Digest // of all, once the writer is over

	// mu guards the fields below it.
	mu       sync.Mutex
	status   content.Status
	borrowed bool
	over     bool
	aborted  bool
}

func (w *writer) held() held { return held{w.c.scope.Name, w.options.Ref} }

// begin borrows the expected blob, or starts or resumes an ingest.
func (w *writer) begin() error {
	if w.options.Expected != "" {
		size, ok, err := w.c.pin(w.options.Expected)
		if err != nil {
			return err
		}
		if ok && (w.options.Total == 0 || w.options.Total == size) {
			w.borrow(size)
			return nil
		}
		if ok {
			w.c.unpin(w.options.Expected)
		}
	}
	if err := w.c.room(0); err != nil {
		return err
	}
	if err := w.openIngest(false); err != nil {
		return err
	}
	return w.orClose(w.c.room(max(w.options.Total-w.status.Offset, 0)))
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

// openIngest finds the ingest of the ref, or makes one: always, if over is set.
func (w *writer) openIngest(over bool) error {
	key := ingestKey(w.c.scope.Name, w.options.Ref)
	var rec ingest
	old := ""
	if err := w.c.db.Update(w.ctx, func(tx *kv.Tx) (err error) {
		rec, err = getIngest(tx, key)
		if err != nil && !errors.Is(err, errdefs.ErrNotFound) && !errors.Is(err, errdefs.ErrDataLoss) {
			return err
		}
		if err != nil || over || rec.differs(w.options) {
			old = rec.File
			rec = ingest{File: newFile(), Started: w.since, Updated: w.since}
		}
		if w.options.Total != 0 {
			rec.Total = w.options.Total
		}
		if w.options.Expected != "" {
			rec.Expected = w.options.Expected
		}
		rec.Expires = w.c.now().Add(w.c.cfg.ingestAge())
		return errors.Join(tx.PutJSON(key, rec), w.c.join(tx, w.lease, ingestOf(w.options.Ref)))
	}); err != nil {
		return err
	}
	w.c.removeIngest(old)
	return w.orClose(w.openFile(rec))
}

// orClose closes the file if err is one.
func (w *writer) orClose(err error) error {
	if err != nil && w.file != nil {
		err = errors.Join(err, w.file.Close())
		w.file = nil
	}
	return err
}

func (r ingest) differs(o content.WriterOptions) bool {
	return r.Total != 0 && o.Total != 0 && r.Total != o.Total ||
		r.Expected != "" && o.Expected != "" && r.Expected != o.Expected
}

// openFile opens the file of an ingest and brings the hash to its end.
func (w *writer) openFile(rec ingest) (err error) {
	w.name = rec.File
	path := w.c.ingestPath(rec.File)
	if w.file, err = w.c.disk.Reopen(path); errors.Is(err, fs.ErrNotExist) {
		w.fresh = true
		w.file, err = w.c.disk.Create(path)
	}
	if err != nil {
		return kind(err)
	}
	fi, err := w.file.Stat()
	if err != nil {
		return err
	}
	w.algorithm = digest.Canonical
	if w.options.Expected != "" {
		w.algorithm = w.options.Expected.Algorithm()
	}
	if rec.Saved != nil && rec.Saved.Offset > fi.Size() {
		// It is of bytes that are gone.
		rec.Saved = nil
		if err := w.save(w.ctx, nil); err != nil {
			return err
		}
	}
	// What no hash was saved of may be in memory only, since a writer that was
	// killed.
	w.dirty = fi.Size() > 0 && (rec.Saved == nil || rec.Saved.Offset != fi.Size())
	w.fresh = w.fresh || w.dirty
	from := int64(0)
	w.hash, from = restore(rec.Saved, w.algorithm)
	if err := hashOn(w.ctx, w.hash, w.file, from, fi.Size()); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status = content.Status{
		Ref: w.options.Ref, Offset: fi.Size(), Total: rec.Total, Expected: rec.Expected,
		StartedAt: rec.Started, UpdatedAt: rec.Updated,
	}
	if w.dirty {
		w.status.UpdatedAt = fi.ModTime().UTC()
	}
	return nil
}

// restore returns a hash as it was saved, and of how many bytes it is.
func restore(s *saved, a digest.Algorithm) (hash.Hash, int64) {
	h := content.NewHash(a)
	if s == nil || s.Algorithm != a || s.Offset < 0 {
		return h, 0
	}
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(s.State); err != nil {
		return content.NewHash(a), 0
	}
	return h, s.Offset
}

// hashOn adds the bytes from from to size.
func hashOn(ctx context.Context, h hash.Hash, r io.ReaderAt, from, size int64) error {
	for part := make([]byte, min(max(size-from, 0), 1<<20)); from < size; from += int64(len(part)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		part = part[:min(size-from, int64(len(part)))]
		if _, err := r.ReadAt(part, from); err != nil {
			return err
		}
		h.Write(part)
	}
	return nil
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

// current is the status of an ingest that is one: not borrowed, and not over.
func (w *writer) current() (content.Status, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status, w.status.Ref != "" && !w.borrowed && !w.over && !w.aborted
}

func (w *writer) isAborted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.aborted
}

// abort ends a writer's ingest, and says whether it had not ended before.
func (w *writer) abort() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	ended := w.over || w.aborted
	w.aborted = true
	return !ended
}

// moved notes what was written, or dropped.
func (w *writer) moved(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Offset += n
	w.status.UpdatedAt = w.c.now()
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
	return w.append(p)
}

func (w *writer) append(p []byte) (int, error) {
	w.dirty = true
	n, err := w.file.WriteAt(p, w.status.Offset)
	w.hash.Write(p[:n])
	w.moved(int64(n))
	return n, kind(err)
}

// own copies the first bytes of what it borrows into an ingest.
func (w *writer) own(size int64) error {
	lent := w.status.Offset
	if err := w.copyOf(size); err != nil {
		w.borrow(lent)
		return w.orClose(err)
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
	if err := w.save(ctx, nil); err != nil {
		return err
	}
	if err := w.file.Truncate(0); err != nil {
		return kind(err)
	}
	w.dirty = true
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

// saveTime is how long the end of a writer waits for the database, whatever
// became of the caller.
const saveTime = 30 * time.Second

// keep makes what was written durable, to be resumed.
func (w *writer) keep() error {
	defer w.closeFile()
	if w.file == nil || w.isAborted() || !w.dirty && !w.fresh {
		return nil
	}
	if err := w.sync(); err != nil {
		return err
	}
	if w.fresh {
		if err := w.c.disk.SyncDir(w.c.ingests()); err != nil {
			return kind(err)
		}
		w.fresh = false
	}
	w.saveHash()
	return nil
}

// sync makes the bytes of the file durable. After a failure the kernel may have
// dropped some, and still show them until the next start: the ingest is over.
func (w *writer) sync() error {
	if !w.dirty {
		return nil
	}
	if err := w.file.Sync(); err != nil {
		return w.discard(err)
	}
	w.dirty = false
	return nil
}

// discard ends an ingest whose file cannot be trusted, for the reason of err.
func (w *writer) discard(err error) error {
	w.c.log.Error("an ingest is discarded", "ref", w.options.Ref, "err", err)
	w.abort()
	w.c.removeIngest(w.name)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), saveTime)
	defer cancel()
	if e := w.c.db.Release(ctx, func(tx *kv.Tx) error {
		rec, err := w.record(tx)
		if err == nil && rec != nil {
			_, _, err = w.c.forget(tx, w.options.Ref)
		}
		return err
	}); e != nil {
		err = errors.Join(err, e)
	}
	return kind(err)
}

// closeFile closes the file, of which all that matters is synced.
func (w *writer) closeFile() {
	if w.file == nil {
		return
	}
	if err := w.file.Close(); err != nil {
		w.c.log.Warn("the file of an ingest was not closed well", "ref", w.options.Ref, "err", err)
	}
	w.file = nil
}

// saveHash saves the hash of what was synced. Without it the next resume takes
// longer, and no more.
func (w *writer) saveHash() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), saveTime)
	defer cancel()
	state, err := w.hash.(encoding.BinaryMarshaler).MarshalBinary()
	if err == nil {
		err = w.save(ctx, &saved{Offset: w.status.Offset, Algorithm: w.algorithm, State: state})
	}
	if err != nil {
		w.c.log.Warn("the hash of an ingest was not saved", "ref", w.options.Ref, "err", err)
	}
}

// save puts a hash into the record of the ingest, if it still is this one.
func (w *writer) save(ctx context.Context, s *saved) error {
	key := ingestKey(w.c.scope.Name, w.options.Ref)
	return w.c.db.Update(ctx, func(tx *kv.Tx) error {
		rec, err := w.record(tx)
		if err != nil || rec == nil {
			return err
		}
		if rec.Saved = s; s != nil {
			rec.Updated = w.status.UpdatedAt
		}
		rec.Expires = w.c.now().Add(w.c.cfg.ingestAge())
		return tx.PutJSON(key, rec)
	})
}

// record returns the record of this writer's ingest, or nil if it was aborted.
func (w *writer) record(tx *kv.Tx) (*ingest, error) {
	rec, err := getIngest(tx, ingestKey(w.c.scope.Name, w.options.Ref))
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case rec.File != w.name:
		return nil, nil
	}
	return &rec, nil
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
	defer w.c.mu.Unlock()
	if w.c.writers[w.held()] == w {
		delete(w.c.writers, w.held())
	}
}
