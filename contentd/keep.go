package contentd

import (
	"context"
	"encoding"
	"errors"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
)

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
		if err := w.c.names[w.c.ingests()].sync(); err != nil {
			w.drop()
			return kind(err)
		}
		w.fresh = false
	}
	if w.lent {
		w.saveLent()
		return nil
	}
	return w.saveHash()
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
		rec, err := getIngest(tx, ingestKey(w.c.scope.Name, w.options.Ref))
		if err == nil && rec.File == w.name {
			_, _, err = w.c.forget(tx, w.options.Ref)
		}
		return notMissing(err)
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

// notMissing is an error that says more than that there is nothing.
func notMissing(err error) error {
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	return err
}

// saveHash saves the hash of what was synced. Without it the next resume takes
// longer, and no more; but an ingest without a record is lost.
func (w *writer) saveHash() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), saveTime)
	defer cancel()
	state, err := w.hash.(encoding.BinaryMarshaler).MarshalBinary()
	if err == nil {
		err = w.save(ctx, &saved{Offset: w.status.Offset, Algorithm: w.algorithm, State: state})
	}
	if err != nil && w.isPending() {
		w.drop()
		return err
	}
	if err != nil {
		w.c.log.Warn("the hash of an ingest was not saved", "ref", w.options.Ref, "err", err)
	}
	return nil
}

// save puts a hash into the record of the ingest, if it was not aborted. One
// that was pending has a record then, and joins its lease.
func (w *writer) save(ctx context.Context, s *saved) error {
	if err := w.c.db.Update(ctx, func(tx *kv.Tx) error {
		rec, l, err := w.record(tx)
		if err != nil || rec == nil {
			return err
		}
		rec.Saved = s
		rec.Lent = w.lent // else nobody can write it any more
		rec.Updated = w.status.UpdatedAt
		rec.Expires = w.c.now().Add(w.c.cfg.ingestAge())
		return errors.Join(
			tx.PutJSON(ingestKey(w.c.scope.Name, w.options.Ref), rec),
			w.c.join(tx, l, ingestOf(w.options.Ref)),
		)
	}); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending = nil
	return nil
}

// unsave forgets the hash, so that the bytes may change.
func (w *writer) unsave(ctx context.Context) error {
	return w.c.db.Release(ctx, func(tx *kv.Tx) error {
		rec, _, err := w.record(tx)
		if err != nil || rec == nil || rec.Saved == nil {
			return err
		}
		rec.Saved = nil
		return tx.PutJSON(ingestKey(w.c.scope.Name, w.options.Ref), rec)
	})
}
