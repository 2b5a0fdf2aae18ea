package contentd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/kv"
)

// Writer implements [content.Ingests].
func (c *scoped) Writer(ctx context.Context, o content.WriterOptions) (content.Writer, error) {
	w := &writer{}
	if err := c.start(ctx, w, o); err != nil {
		return nil, err
	}
	return w, nil
}

// start makes w the writer of a ref.
func (c *scoped) start(ctx context.Context, w *writer, o content.WriterOptions) error {
	if err := o.Check(); err != nil {
		return err
	}
	l, err := c.lookup(ctx)
	if err != nil {
		return err
	}
	w.c, w.ctx, w.options, w.lease, w.since = c, ctx, o, l, c.now()
	if err := w.already(); err != nil {
		return err
	}
	if err := c.hold(w); err != nil {
		return err
	}
	if err := w.begin(); err != nil {
		w.release()
		return err
	}
	return nil
}

// already is [errdefs.ErrAlreadyExists] if the namespace has the expected blob,
// which has then joined the lease, and left no ingest that nobody writes.
func (w *writer) already() error {
	c, o, l := w.c, w.options, w.lease
	if o.Expected == "" {
		return nil
	}
	there, settled := false, false
	look := func(tx *kv.Tx) (err error) {
		if _, err = c.blob(tx, o.Expected); errors.Is(err, errdefs.ErrNotFound) {
			return nil
		}
		c.note(contentOf(o.Expected))
		there = err == nil
		return err
	}
	if err := c.db.Look(w.ctx, func(tx *kv.Tx) (err error) {
		if err = look(tx); err == nil && there && l.ID == "" {
			var left bool
			left, err = present(tx, ingestKey(c.scope.Name, o.Ref))
			settled = !left
		}
		return err
	}); err != nil || !there {
		return err
	}
	left := ""
	if !settled {
		err := c.db.Touch(w.ctx, func(tx *kv.Tx) (err error) {
			there = false
			if err = look(tx); err != nil || !there {
				return err // or deleted meanwhile
			}
			if holder := c.writerOf(o.Ref); holder == nil || holder == w {
				if left, _, err = c.forget(tx, o.Ref); err != nil {
					return err
				}
			}
			return c.join(tx, l, contentOf(o.Expected))
		})
		if err != nil || !there {
			return err
		}
	}
	c.removeIngest(left)
	return fmt.Errorf("content %s: %w", o.Expected, errdefs.ErrAlreadyExists)
}

// hold takes the ref for w.
func (c *scoped) hold(w *writer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if other := c.writers[w.held()]; other != nil {
		return fmt.Errorf("ref %s locked for %s: %w", w.options.Ref, c.now().Sub(other.since).Round(time.Millisecond), errdefs.ErrUnavailable)
	}
	c.writers[w.held()] = w
	return nil
}

// writerOf returns who holds a ref, or nil.
func (c *scoped) writerOf(ref string) *writer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writers[held{c.scope.Name, ref}]
}

// pin keeps bytes that some namespace has, or had until just now, from being
// collected. It says how many they are, and false if there are none.
func (s *Store) pin(d digest.Digest) (int64, bool, error) {
	defer s.lock(d)()
	fi, err := os.Lstat(s.path(d))
	if errors.Is(err, fs.ErrNotExist) || err == nil && s.isLost(d) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	size := int64(0)
	err = s.db.View(func(tx *kv.Tx) (err error) {
		size, err = sizeOf(tx, d)
		return err
	})
	if errors.Is(err, errdefs.ErrNotFound) || err == nil && size != fi.Size() {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pins[d]++
	return size, true, nil
}

func (s *Store) unpin(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pins[d]--; s.pins[d] <= 0 {
		delete(s.pins, d)
		s.ring()
	}
}

// room is [errdefs.ErrResourceExhausted] if size more bytes would leave less
// free disk than is to be left.
func (s *Store) room(size int64) error {
	free, err := s.disk.Free(s.cfg.Root)
	if err != nil {
		return err
	}
	if free-size < s.cfg.freeMin() {
		return fmt.Errorf("disk of %s is nearly full: %d bytes are free, and %d more would leave less than %d: %w",
			s.cfg.Root, free, size, s.cfg.freeMin(), errdefs.ErrResourceExhausted)
	}
	return nil
}

// Status implements [content.Ingests].
func (c *scoped) Status(_ context.Context, ref string) (content.Status, error) {
	if w := c.writerOf(ref); w != nil {
		if st, ok := w.current(); ok {
			return st, nil
		}
	}
	var rec ingest
	err := c.db.View(func(tx *kv.Tx) (err error) {
		rec, err = getIngest(tx, ingestKey(c.scope.Name, ref))
		return err
	})
	if errors.Is(err, errdefs.ErrNotFound) {
		return content.Status{}, fmt.Errorf("reference %s: %w", ref, errdefs.ErrNotFound)
	}
	if err != nil {
		return content.Status{}, err
	}
	return c.statusOf(ref, rec)
}

// statusOf asks whoever writes the ingest, or else the file.
func (c *scoped) statusOf(ref string, rec ingest) (content.Status, error) {
	if w := c.writerOf(ref); w != nil {
		if st, ok := w.current(); ok {
			return st, nil
		}
	}
	st := content.Status{Ref: ref, Total: rec.Total, Expected: rec.Expected, StartedAt: rec.Started, UpdatedAt: rec.Updated}
	fi, err := os.Lstat(c.ingestPath(rec.File))
	if errors.Is(err, fs.ErrNotExist) {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	st.Offset = fi.Size()
	if rec.Saved == nil || rec.Saved.Offset != st.Offset {
		st.UpdatedAt = fi.ModTime().UTC()
	}
	return st, nil
}

// ListStatuses implements [content.Ingests].
func (c *scoped) ListStatuses(_ context.Context, filters ...string) ([]content.Status, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	pending := c.pendingStatuses(c.scope.Name, f)
	var all []content.Status
	var records []ingest
	if err := c.db.View(func(tx *kv.Tx) error {
		for key, value := range tx.Scan(ingestKey(c.scope.Name, ""), nil) {
			st := content.Status{Ref: kv.Parts(key)[2]}
			rec, err := readIngest(key, value)
			if err != nil {
				return err
			}
			if f.Match(st.Field) {
				all, records = append(all, st), append(records, rec)
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	for i := range all {
		if all[i], err = c.statusOf(all[i].Ref, records[i]); err != nil {
			return nil, err
		}
	}
	return mergeStatuses(all, pending), nil
}

// Abort implements [content.Ingests].
func (c *scoped) Abort(ctx context.Context, ref string) error {
	left, pending, found := "", "", false
	if err := c.db.Release(ctx, func(tx *kv.Tx) (err error) {
		if left, found, err = c.forget(tx, ref); err != nil {
			return err
		}
		// In the transaction, as whoever commits: one of the two is first.
		if w := c.writerOf(ref); w != nil && w.abort() {
			found = true
			if w.isPending() {
				pending = w.name
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("reference %s: %w", ref, errdefs.ErrNotFound)
	}
	c.removeIngest(left)
	if pending != left {
		c.removeIngest(pending)
	}
	return nil
}

// forget removes the record of an ingest, if there is one, and its leases, and
// returns the file that is left to remove.
func (c *scoped) forget(tx *kv.Tx, ref string) (left string, found bool, err error) {
	key := ingestKey(c.scope.Name, ref)
	rec, err := getIngest(tx, key)
	if errors.Is(err, errdefs.ErrNotFound) {
		// One that is pending may have been put into a lease.
		return "", false, leave(tx, c.scope.Name, ingestOf(ref), "")
	}
	// What is damaged can be forgotten; its file is found when the store is
	// opened next.
	if err != nil && !errors.Is(err, errdefs.ErrDataLoss) {
		return "", false, err
	}
	return rec.File, true, errors.Join(tx.Delete(key), leave(tx, c.scope.Name, ingestOf(ref), ""))
}

// removeIngest removes a file of ingest/ that has no record. What it cannot
// remove is removed when the store is opened next.
func (s *Store) removeIngest(name string) {
	if name == "" {
		return
	}
	if err := s.disk.Remove(s.ingestPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("a file of an ingest that is over stays", "file", name, "err", err)
	}
}
