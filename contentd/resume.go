package contentd

import (
	"context"
	"encoding"
	"errors"
	"hash"
	"io"
	"io/fs"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/kv"
)

// openIngest finds the ingest of the ref, or makes one: always, if over is set.
func (w *writer) openIngest(over bool) error {
	key := ingestKey(w.c.scope.Name, w.options.Ref)
	found := false
	if err := w.c.db.View(func(tx *kv.Tx) (err error) {
		found, err = present(tx, key)
		return err
	}); err != nil {
		return err
	}
	if !found && !w.lent { // of which the record has to say so before it is
		rec := w.newRecord()
		w.mu.Lock()
		w.pending = &rec
		w.mu.Unlock()
		return w.orDrop(w.openFile(rec))
	}
	var rec ingest
	old, wasLent := "", false
	if err := w.c.db.Update(w.ctx, func(tx *kv.Tx) (err error) {
		rec, err = getIngest(tx, key)
		if err != nil && !errors.Is(err, errdefs.ErrNotFound) && !errors.Is(err, errdefs.ErrDataLoss) {
			return err
		}
		if err != nil || over || rec.differs(w.options) {
			old = rec.File
			rec = w.newRecord()
		}
		if w.options.Total != 0 {
			rec.Total = w.options.Total
		}
		if w.options.Expected != "" {
			rec.Expected = w.options.Expected
		}
		if wasLent = rec.Lent; w.lent {
			rec.Lent, rec.Saved = true, nil
		}
		rec.Expires = w.c.now().Add(w.c.cfg.ingestAge())
		return errors.Join(tx.PutJSON(key, rec), w.c.join(tx, w.lease, ingestOf(w.options.Ref)))
	}); err != nil {
		return err
	}
	w.c.removeIngest(old)
	if wasLent {
		if ok, err := w.returned(rec); err != nil {
			return err
		} else if !ok {
			return w.openIngest(true)
		}
	}
	return w.orDrop(w.openFile(rec))
}

// newRecord is of an ingest that begins.
func (w *writer) newRecord() ingest {
	return ingest{
		File: newFile(), Total: w.options.Total, Expected: w.options.Expected,
		Started: w.since, Updated: w.since,
	}
}

// orDrop closes the file if err is one, and forgets an ingest that nobody else
// knows of.
func (w *writer) orDrop(err error) error {
	if err == nil {
		return nil
	}
	if w.file != nil {
		err = errors.Join(err, w.file.Close())
		w.file = nil
	}
	w.drop()
	return err
}

func (r ingest) differs(o content.WriterOptions) bool {
	return r.Total != 0 && o.Total != 0 && r.Total != o.Total ||
		r.Expected != "" && o.Expected != "" && r.Expected != o.Expected
}

// openFile opens the file of an ingest and brings the hash to its end.
func (w *writer) openFile(rec ingest) (err error) {
	w.name, w.fresh = rec.File, w.isPending()
	path := w.c.ingestPath(rec.File)
	if !w.fresh {
		w.file, err = w.c.disk.Reopen(path)
		w.fresh = errors.Is(err, fs.ErrNotExist)
	}
	if w.fresh {
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
		if err := w.unsave(w.ctx); err != nil {
			return err
		}
	}
	// What no hash was saved of may be in memory only, since a writer that was
	// killed.
	w.dirty = fi.Size() > 0 && (rec.Saved == nil || rec.Saved.Offset != fi.Size())
	w.fresh, w.flushed = w.fresh || w.dirty, fi.Size()
	from := int64(0)
	w.hash, from = restore(rec.Saved, w.algorithm)
	if !w.lent {
		if err := hashOn(w.ctx, w.hash, w.file, from, fi.Size()); err != nil {
			return err
		}
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
