package contentd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/lease"
)

// Commit implements [content.Writer].
func (w *writer) Commit(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) error {
	w.mu.Lock()
	over := w.over
	w.over = true
	w.mu.Unlock()
	if over {
		return fmt.Errorf("writer of ref %s is closed: %w", w.options.Ref, errdefs.ErrFailedPrecondition)
	}
	defer w.release()
	w.fetch.Ending()
	w.sum = w.Digest()
	ended, err := w.commit(ctx, size, expected, labels)
	if err == nil {
		w.fetch.Landed()
	}
	if ended {
		w.closeFile()
		return err
	}
	if e := w.keep(); e != nil {
		err = errors.Join(err, e)
	}
	return err
}

// commit does so, and says whether the ingest has ended, with or without an
// error.
func (w *writer) commit(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) (ended bool, err error) {
	claim, err := content.NewClaim(w.options, size, expected, labels)
	if err != nil {
		return false, err
	}
	l, err := w.c.lookup(ctx)
	if err != nil {
		return false, err
	}
	if w.isAborted() {
		return true, w.gone()
	}
	if claim.Expected != "" {
		// It asks for no bytes.
		if err := w.endExisting(ctx, claim.Expected, l); err != nil {
			return errors.Is(err, errdefs.ErrAlreadyExists) || w.isAborted(), err
		}
	}
	if w.lent && w.file != nil {
		if err := w.reclaim(ctx, claim); err != nil {
			return false, err
		}
	}
	d, err := w.digestLike(ctx, claim.Expected)
	if err != nil {
		return false, err
	}
	if err := claim.Check(w.options.Ref, w.status.Offset, d); err != nil {
		return false, err
	}
	if w.file != nil {
		w.c.annotate(w.c.ingestPath(w.name), w.c.scope.Name, w.c.now(), label.Clean(labels))
	}
	if err := w.seal(); err != nil {
		return true, err
	}
	w.sum = d
	return w.publish(ctx, d, l, label.Clean(labels))
}

func (w *writer) gone() error {
	return fmt.Errorf("reference %s: %w", w.options.Ref, errdefs.ErrNotFound)
}

func (w *writer) exists(d digest.Digest) error {
	return fmt.Errorf("content %s: %w", d, errdefs.ErrAlreadyExists)
}

// endExisting is [errdefs.ErrAlreadyExists] if the namespace has the blob, and
// has ended the ingest then.
func (w *writer) endExisting(ctx context.Context, d digest.Digest, l lease.Ref) error {
	if _, err := w.c.Info(ctx, d); err != nil {
		if errors.Is(err, errdefs.ErrNotFound) {
			return nil
		}
		return err
	}
	there, left := false, ""
	if err := w.c.db.Touch(ctx, func(tx *kv.Tx) (err error) {
		if _, err = w.c.blob(tx, d); err != nil {
			if errors.Is(err, errdefs.ErrNotFound) {
				return nil // deleted meanwhile
			}
			return err
		}
		if there = !w.isAborted(); !there {
			return w.gone()
		}
		w.c.note(contentOf(d))
		if left, _, err = w.c.forget(tx, w.options.Ref); err != nil {
			return err
		}
		w.settle(true)
		return w.c.join(tx, l, contentOf(d))
	}); err != nil || !there {
		w.settle(false)
		return err
	}
	w.removeBoth(left)
	return w.exists(d)
}

// digestLike is the digest of what was written in the algorithm of like.
func (w *writer) digestLike(ctx context.Context, like digest.Digest) (digest.Digest, error) {
	if w.file == nil || like == "" || like.Algorithm() == w.algorithm {
		return w.sum, nil
	}
	h := content.NewHash(like.Algorithm())
	if err := hashOn(ctx, h, w.file, 0, w.status.Offset); err != nil {
		return "", err
	}
	return digest.NewDigest(like.Algorithm(), h), nil
}

// seal makes the bytes durable, and the file one that is not written any more.
func (w *writer) seal() error {
	if w.file == nil {
		return nil
	}
	if err := w.file.Chmod(blobMode); err != nil {
		return w.discard(err)
	}
	return w.sync()
}

// publish makes what was written a blob. The order is the promise: bytes, which
// are synced, then name, then the directory that holds the name, then the
// record. See "What survives a crash".
func (w *writer) publish(ctx context.Context, d digest.Digest, l lease.Ref, labels map[string]string) (ended bool, err error) {
	defer w.c.lock(d)()
	move, err := w.place(d)
	if err != nil {
		return false, err
	}
	r := recording{writer: w, digest: d, lease: l, labels: labels, placed: move != stayed}
	if err := w.c.db.Update(ctx, func(tx *kv.Tx) error {
		r.ran = true
		r.failed = r.write(ctx, tx)
		return r.failed
	}); err != nil {
		w.settle(false)
		// Where the record may be true after all, the bytes stay, and are
		// found when the store is opened next.
		if r.ran && r.failed == nil {
			return move == moved, err
		}
		if move == moved {
			w.unplace(d)
		}
		return false, err
	}
	w.c.find(d)
	if move == stayed && !r.gone {
		w.c.annotate(w.c.path(d), w.c.scope.Name, w.c.now(), labels)
	}
	if r.left != w.name {
		w.c.removeIngest(r.left)
	}
	switch {
	case r.gone:
		return true, w.gone()
	case r.exists:
		return true, w.exists(d)
	}
	return true, nil
}

// A placing is what became of the file of an ingest.
type placing int

const (
	stayed   placing = iota // the blob was there
	moved                   // it is the blob
	replaced                // it is the blob, in place of a file that may be anything
)

// place makes sure that the bytes are where a blob's are, durably.
func (w *writer) place(d digest.Digest) (placing, error) {
	to := w.c.path(d)
	fi, err := os.Lstat(to)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return stayed, err
	case err == nil && fi.Size() == w.status.Offset && w.file == nil:
		return stayed, kind(w.c.names[filepath.Dir(to)].sync())
	case w.file == nil:
		// What was borrowed is gone, which nobody here does.
		w.c.lose(d, errNotWhole)
		return stayed, fmt.Errorf("content %s was lost and has to be written again: %w", d, errdefs.ErrAborted)
	}
	move := moved
	if err == nil {
		move = replaced
	}
	if err := w.noteHolders(d); err != nil {
		return stayed, err
	}
	if err := w.c.disk.Rename(w.c.ingestPath(w.name), to); errors.Is(err, fs.ErrNotExist) {
		return stayed, w.gone() // aborted
	} else if err != nil {
		return stayed, kind(err)
	}
	if err := w.c.names[filepath.Dir(to)].sync(); err != nil {
		if move == moved {
			w.unplace(d)
		}
		return stayed, kind(err)
	}
	return move, nil
}

// removeBoth removes the file of the ingest, and the one that its ref had a
// record of, if that is another.
func (w *writer) removeBoth(left string) {
	w.c.removeIngest(left)
	if w.name != left {
		w.c.removeIngest(w.name)
	}
}

// unplace gives the ingest its file back.
func (w *writer) unplace(d digest.Digest) {
	if err := w.c.disk.Rename(w.c.path(d), w.c.ingestPath(w.name)); err != nil {
		w.c.log.Warn("a file without a record stays until the next start", "digest", d, "err", err)
		return
	}
	w.fresh = true // its name is to be made durable once more
}

// A recording is the transaction that makes bytes a blob.
type recording struct {
	*writer
	digest digest.Digest
	lease  lease.Ref
	labels map[string]string
	placed bool // the file became the blob's just now

	ran    bool
	failed error
	gone   bool   // the ingest was aborted
	exists bool   // the namespace has the blob
	left   string // file of ingest/ to remove
}

func (r *recording) write(ctx context.Context, tx *kv.Tx) error {
	c, d := r.c, r.digest
	rec, _, err := r.record(tx)
	if err != nil {
		return err
	}
	if r.isAborted() || r.file != nil && rec == nil {
		if r.gone = true; r.placed {
			return c.trash(tx, d, r.status.Offset)
		}
		return nil
	}
	r.settle(true)
	if r.left, _, err = c.forget(tx, r.options.Ref); err != nil {
		return err
	}
	if err := c.join(tx, r.lease, contentOf(d)); err != nil {
		return err
	}
	if _, err := c.blob(tx, d); !errors.Is(err, errdefs.ErrNotFound) {
		r.exists = err == nil
		return err
	}
	now := c.now()
	return errors.Join(
		tx.PutJSON(blobKey(c.scope.Name, d), blob{Size: r.status.Offset, Created: now, Updated: now, Labels: r.labels}),
		tx.PutJSON(haveKey(d, c.scope.Name), r.status.Offset),
		tx.Delete(trashKey(d)),
		c.box.Add(ctx, tx, event.New(c.scope.Name, now, event.ContentCreate{Digest: d.String(), Size: r.status.Offset})),
	)
}
