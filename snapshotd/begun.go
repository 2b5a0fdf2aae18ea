package snapshotd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// What is kept of external snapshotters, beside the records that all have:
//
//	begun <id>                        what they may have that no record says
//	shared <snapshotter> <key> <id>   a snapshot of theirs that a record adopted
//	mounted <id>                      the mounts of a snapshot, as a hash
//	mounts <hash> <id>                the same, the other way round

// A begun row is written before an external snapshotter is told to make
// something: a snapshot that is to get a record of that id, or the committed one
// that an active one becomes.
type begun struct {
	Snapshotter string     `json:"snapshotter"`
	Ref         driver.Ref `json:"ref"`
	Name        string     `json:"name"`
}

func begunKey(id uint64) []byte   { return kv.Key("begun", hexID(id)) }
func mountedKey(id uint64) []byte { return kv.Key("mounted", hexID(id)) }

func mountsKey(hash string, id uint64) []byte { return kv.Key("mounts", hash, hexID(id)) }

func sharedKey(snapshotter, key string, id uint64) []byte {
	return kv.Key("shared", snapshotter, key, hexID(id))
}

// sharedID stands for a snapshot of an external snapshotter's own among those
// that are held. It is no id of a tree, which are small. Two that have the same
// wait for each other, and no more.
func sharedID(snapshotter, key string) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%s", snapshotter, key)
	return h.Sum64() | 1<<63
}

// begin notes what is going to be made.
func (s *Store) begin(ctx context.Context, b begun) error {
	return s.db.Update(ctx, func(tx *kv.Tx) error {
		return errors.Join(raiseLast(tx, b.Ref.ID), tx.PutJSON(begunKey(b.Ref.ID), b))
	})
}

// begunOf returns what was begun for an id, if anything.
func begunOf(tx *kv.Tx, id uint64) (b begun, ok bool, err error) {
	switch err := tx.GetJSON(begunKey(id), &b); {
	case errors.Is(err, errdefs.ErrNotFound):
		return b, false, nil
	case err != nil:
		return b, false, err
	}
	return b, true, nil
}

// giveUp has the collector remove what may have been made. It is done also for a
// caller who has gone.
func (s *Store) giveUp(ctx context.Context, id uint64) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTime)
	defer cancel()
	err := s.db.Release(ctx, func(tx *kv.Tx) error {
		b, ok, err := begunOf(tx, id)
		if !ok || err != nil {
			return err
		}
		return errors.Join(tx.Delete(begunKey(id)), tx.PutJSON(trashKey(id), trash{time.Now().UTC(), b.Snapshotter, b.Ref.Key}))
	})
	s.ring()
	return err
}

// finished notes that what was made has a record, and its mounts, if it has any.
// It is done also for a caller who has gone: there is no way back.
func (s *Store) finished(ctx context.Context, id uint64, mounts []mount.Mount) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTime)
	defer cancel()
	return s.db.Update(ctx, func(tx *kv.Tx) error {
		return errors.Join(tx.Delete(begunKey(id)), rememberIn(tx, id, mounts))
	})
}

// recoverBegun has the collector remove what was begun before a crash and got no
// record.
func (s *Store) recoverBegun(ctx context.Context) error {
	var all []begun
	if err := s.db.View(func(tx *kv.Tx) error {
		for key, value := range tx.Scan(kv.Key("begun", ""), nil) {
			var b begun
			if err := json.Unmarshal(value, &b); err != nil {
				return fmt.Errorf("record %q: %v: %w", key, err, errdefs.ErrDataLoss)
			}
			all = append(all, b)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, b := range all {
		if err := s.db.Release(ctx, func(tx *kv.Tx) error { return s.recoverOne(tx, b) }); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) recoverOne(tx *kv.Tx, b begun) error {
	var o owner
	switch err := tx.GetJSON(dirKey(b.Ref.ID), &o); {
	case err == nil:
		r, err := o.shelf().get(tx, o.Name)
		if err != nil {
			return err
		}
		if o.shelf().ref(o.Name, r).Key == b.Ref.Key {
			return tx.Delete(begunKey(b.Ref.ID)) // it got its record
		}
		return nil // a commit, which is tried again or never
	case !errors.Is(err, errdefs.ErrNotFound):
		return err
	}
	if _, err := tx.Get(trashKey(b.Ref.ID)); !errors.Is(err, errdefs.ErrNotFound) {
		return err
	}
	return tx.PutJSON(trashKey(b.Ref.ID), trash{time.Now().UTC(), b.Snapshotter, b.Ref.Key})
}

// hashOf stands for mounts in keys.
func hashOf(mounts []mount.Mount) string {
	b, err := json.Marshal(mounts)
	if err != nil {
		return "" // there is nothing in it that cannot be written
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// remember notes the mounts by which clients name a snapshot.
func (s *Store) remember(ctx context.Context, id uint64, mounts []mount.Mount) error {
	known := false
	if err := s.db.View(func(tx *kv.Tx) error {
		_, err := tx.Get(mountsKey(hashOf(mounts), id))
		known = err == nil
		if errors.Is(err, errdefs.ErrNotFound) {
			return nil
		}
		return err
	}); err != nil || known {
		return err
	}
	return s.db.Update(ctx, func(tx *kv.Tx) error { return rememberIn(tx, id, mounts) })
}

func rememberIn(tx *kv.Tx, id uint64, mounts []mount.Mount) error {
	if err := forgetMounts(tx, id); err != nil || len(mounts) == 0 {
		return err
	}
	hash := hashOf(mounts)
	return errors.Join(tx.PutJSON(mountedKey(id), hash), tx.Put(mountsKey(hash, id), nil))
}

func forgetMounts(tx *kv.Tx, id uint64) error {
	var hash string
	switch err := tx.GetJSON(mountedKey(id), &hash); {
	case errors.Is(err, errdefs.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return errors.Join(tx.Delete(mountedKey(id)), tx.Delete(mountsKey(hash, id)))
}

// described returns which snapshot of a namespace in an external snapshotter has
// these mounts: an active one, if there are several.
func (s *Store) described(ns string, mounts []mount.Mount) (snapshotter string, f driver.Found, ok bool) {
	if len(s.externals) == 0 || len(mounts) == 0 {
		return "", f, false
	}
	// What cannot be read is not found.
	_ = s.db.View(func(tx *kv.Tx) error {
		for key := range tx.Scan(kv.Key("mounts", hashOf(mounts), ""), nil) {
			id, err := idOf(key)
			if err != nil {
				return err
			}
			var o owner
			if tx.GetJSON(dirKey(id), &o) != nil || o.Namespace != ns || s.externals[o.Snapshotter] == nil {
				continue
			}
			r, err := o.shelf().get(tx, o.Name)
			if err != nil {
				continue
			}
			snapshotter, ok = o.Snapshotter, true
			f = driver.Found{ID: id, Write: r.Kind == snapshot.Active}
			if f.Write {
				return nil
			}
		}
		return nil
	})
	return snapshotter, f, ok
}
