package contentd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/namespace"
)

const (
	// sweepEvery is how often Collect looks for what nobody told it of: ingests
	// whose time is over, and what could not be removed.
	sweepEvery = 5 * time.Minute

	// trashBatch is how many rows of trash are read at once.
	trashBatch = 256
)

// Collect removes the bytes that no namespace has and the ingests that nobody
// writes, until ctx ends. It is a work of the daemon's. What cannot be removed
// is tried again later, and stops nothing else.
func (s *Store) Collect(ctx context.Context) error {
	timer := time.NewTicker(sweepEvery)
	defer timer.Stop()
	for {
		s.sweep(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.bell:
		case <-timer.C:
		}
	}
}

// sweep collects once.
func (s *Store) sweep(ctx context.Context) {
	if err := errors.Join(s.sweepLeft(), s.sweepTrash(ctx), s.sweepIngests(ctx)); err != nil && ctx.Err() == nil {
		s.log.Warn("something stays that nobody needs", "err", err)
	}
}

func (s *Store) sweepTrash(ctx context.Context) error {
	var failed error
	for from := []byte(nil); ; {
		var batch []digest.Digest
		if err := s.db.View(func(tx *kv.Tx) error {
			for key := range tx.Scan(kv.Key("trash", ""), from) {
				batch = append(batch, digestOf(key))
				if from = append(key, 0); len(batch) == trashBatch {
					break
				}
			}
			return nil
		}); err != nil {
			return err
		}
		for _, d := range batch {
			if d != "" {
				failed = errors.Join(failed, s.collect(ctx, d))
			}
		}
		if len(batch) < trashBatch || ctx.Err() != nil {
			return failed
		}
	}
}

// collect removes the bytes of a digest that is still trash. Under the digest's
// lock nobody can make it anything else: a commit has either been, and removed
// the row, or will find no file. What a writer borrows waits, and so does
// everything while the records may be those of a backup, which calls trash what
// was written again since.
func (s *Store) collect(ctx context.Context, d digest.Digest) error {
	defer s.lock(d)()
	if s.keeper.Incomplete() {
		return nil
	}
	s.mu.Lock()
	pinned := s.pins[d] > 0
	s.mu.Unlock()
	if pinned {
		return nil
	}
	still := false
	if err := s.db.View(func(tx *kv.Tx) (err error) {
		if still, err = present(tx, trashKey(d)); err != nil || !still {
			return err
		}
		if still = !had(tx, d); !still {
			return nil
		}
		return s.wanted(tx, d)
	}); err != nil || !still {
		return err
	}
	// The file before the row: a row without a file is found again, and a file
	// without a row only when the store is opened.
	if err := s.disk.Remove(s.path(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.find(d) // nobody has a record that could lack it
	return s.db.Release(ctx, func(tx *kv.Tx) error { return tx.Delete(trashKey(d)) })
}

// A stale is an ingest whose time is over, if no lease has it.
type stale struct {
	held
	file   string
	leases []membership
}

func (s *Store) sweepIngests(ctx context.Context) error {
	var all []stale
	if err := s.db.View(func(tx *kv.Tx) error {
		for key, value := range tx.Scan(kv.Key("ingest", ""), nil) {
			rec, err := readIngest(key, value)
			if err != nil || s.now().Before(rec.Expires) {
				continue // what is damaged waits for its Abort
			}
			parts := kv.Parts(key)
			i := stale{held: held{parts[1], parts[2]}, file: rec.File}
			if i.leases, err = leasesOf(tx, i.namespace, ingestOf(i.ref)); err != nil {
				return err
			}
			all = append(all, i)
		}
		return nil
	}); err != nil {
		return err
	}
	var failed error
	for _, i := range all {
		if err := s.collectIngest(ctx, i); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// collectIngest removes an ingest unless it is written, or a lease that exists
// has it, or whether one does cannot be known.
func (s *Store) collectIngest(ctx context.Context, i stale) error {
	for _, m := range i.leases {
		l, err := s.lookupIn(ctx, namespace.Scope{Name: m.ns, Lease: m.lease.ID})
		if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		if err == nil && l == m.lease {
			return nil
		}
	}
	c := &scoped{s, namespace.Scope{Name: i.namespace}}
	removed := false
	if err := s.db.Release(ctx, func(tx *kv.Tx) error {
		removed = false
		rec, err := getIngest(tx, ingestKey(i.namespace, i.ref))
		if errors.Is(err, errdefs.ErrNotFound) {
			return nil
		}
		// All of it may have changed since it was looked at.
		if err != nil || rec.File != i.file || s.now().Before(rec.Expires) || c.writerOf(i.ref) != nil {
			return err
		}
		leases, err := leasesOf(tx, i.namespace, ingestOf(i.ref))
		if err != nil || len(leases) > len(i.leases) {
			return err
		}
		removed = true
		_, _, err = c.forget(tx, i.ref)
		return err
	}); err != nil || !removed {
		return err
	}
	s.log.Info("removed an ingest that nobody writes", "namespace", i.namespace, "ref", i.ref)
	s.removeIngest(i.file)
	return nil
}

// wanted is [errdefs.ErrDataLoss] if a namespace that the file tells of has a
// record of the blob: rows that a damaged database does not show are no reason to
// remove bytes.
func (s *Store) wanted(tx *kv.Tx, d digest.Digest) error {
	for ns := range notesOf(s.path(d)) {
		has, err := present(tx, blobKey(ns, d))
		if err == nil && has {
			err = fmt.Errorf("content %s is trash, and namespace %s has it: gantryctl fsck content: %w", d, ns, errdefs.ErrDataLoss)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
