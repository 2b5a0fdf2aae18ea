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
		if err := w.c.disk.SyncDir(w.c.ingests()); err != nil {
			return kind(err)
		}
		w.fresh = false
	}
	if w.lent {
		w.saveLent()
	} else {
		w.saveHash()
	}
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
	return w.c.db.Update(ctx, func(tx *kv.Tx) error {
		rec, err := w.record(tx)
		if err != nil || rec == nil {
			return err
		}
		rec.Saved = s
		rec.Lent = w.lent // else nobody can write it any more
		rec.Updated = w.status.UpdatedAt
		rec.Expires = w.c.now().Add(w.c.cfg.ingestAge())
		return tx.PutJSON(ingestKey(w.c.scope.Name, w.options.Ref), rec)
	})
}

// unsave forgets the hash, so that the bytes may change.
func (w *writer) unsave(ctx context.Context) error {
	return w.c.db.Release(ctx, func(tx *kv.Tx) error {
		rec, err := w.record(tx)
		if err != nil || rec == nil || rec.Saved == nil {
			return err
		}
		rec.Saved = nil
		return tx.PutJSON(ingestKey(w.c.scope.Name, w.options.Ref), rec)
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
