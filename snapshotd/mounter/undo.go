package mounter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/kv"
)

// A dirLock says that the mounts in a directory are this process's.
type dirLock struct{ f *os.File }

func lockDir(dir string) (*dirLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("directory %s is in use by another process: %v: %w", dir, err, errdefs.ErrFailedPrecondition)
	}
	return &dirLock{f}, nil
}

// Close lets go; once more is fine.
func (l *dirLock) Close() error {
	if err := l.f.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// undo takes the mounts of an activation away, the last first, and stops at one
// that is in use. It can be done again.
func (s *Store) undo(p place) error {
	for i := p.Count - 1; i >= 0; i-- {
		if err := s.undoOne(filepath.Join(p.Dir, strconv.Itoa(i))); err != nil {
			return err
		}
	}
	return s.kernel.Remove(p.Dir)
}

func (s *Store) undoOne(path string) error {
	// A file system that has shut itself down says nothing of its root, and is
	// unmounted all the same.
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && fi.Mode().Type() == fs.ModeSymlink {
		device, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if err := s.kernel.Free(device, path); err != nil {
			return err
		}
		return s.kernel.Remove(path)
	}
	if err := s.kernel.Unmount(path); errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s is in use: %w", path, errdefs.ErrFailedPrecondition)
	} else if err != nil {
		return err
	}
	return s.kernel.Remove(path)
}

// reconcile compares the records with this boot and with the directories. What
// is to be undone is left to Collect.
func (s *Store) reconcile() error {
	strays, err := s.directories()
	if err != nil {
		return err
	}
	type lost struct {
		ns, name string
		place    place
	}
	var losts []lost
	var last uint64
	if err := s.needs.Records.View(func(tx *kv.Tx) error {
		if err := tx.GetJSON(lastKey, &last); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		for key, value := range tx.Scan(kv.Key(Rows, ""), nil) {
			r, err := readRecord(key, value)
			if err != nil {
				return err
			}
			last = max(last, r.ID)
			delete(strays, r.ID)
			parts := kv.Parts(key)
			_, err = tx.Get(endingKey(parts[1], parts[2]))
			if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
				return err
			}
			if err == nil || r.State != active || r.Boot != s.boot {
				losts = append(losts, lost{parts[1], parts[2], r.place})
			}
		}
		all, err := scanUnmounts(tx)
		for _, p := range all {
			last = max(last, p.ID)
			delete(strays, p.ID)
		}
		return err
	}); err != nil {
		return err
	}
	var places []place
	for _, p := range strays {
		last = max(last, p.ID)
		places = append(places, p)
	}
	s.last.Store(last)
	if len(losts)+len(places) == 0 {
		return nil
	}
	s.needs.Log.Info("found mounts to be undone", "activations", len(losts), "directories", len(places))
	for part := range slices.Chunk(losts, chunk) {
		if err := s.needs.Records.Release(context.Background(), func(tx *kv.Tx) error {
			var errs []error
			for _, l := range part {
				errs = append(errs, s.abandon(tx, l.ns, l.name, l.place))
			}
			return errors.Join(errs...)
		}); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(places, chunk) {
		if err := s.needs.Records.Release(context.Background(), func(tx *kv.Tx) error {
			var errs []error
			for _, p := range part {
				errs = append(errs, tx.PutJSON(unmountKey(p.ID), p))
			}
			return errors.Join(errs...)
		}); err != nil {
			return err
		}
	}
	return nil
}

// chunk is how many records one transaction changes.
const chunk = 200

// directories returns where mounts are or were, by their ids.
func (s *Store) directories() (map[uint64]place, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	found := make(map[uint64]place)
	for _, e := range entries {
		id, ok := parseID(e.Name())
		if !ok {
			s.needs.Log.Warn("something else is among the mounts", "dir", s.dir, "name", e.Name())
			continue
		}
		p := place{ID: id, Boot: s.boot, Dir: filepath.Join(s.dir, e.Name())}
		points, err := os.ReadDir(p.Dir)
		if err != nil {
			return nil, err
		}
		for _, e := range points {
			if i, ok := parseID(e.Name()); ok && i < 1<<16 {
				p.Count = max(p.Count, int(i)+1)
			}
		}
		found[id] = p
	}
	return found, nil
}

const (
	// What could not be unmounted is tried again after retryMin, and then
	// always later, up to retryMax.
	retryMin = time.Second
	retryMax = 5 * time.Minute
)

// Collect undoes what nobody has any more, until ctx ends. It is a work of the
// daemon.
func (s *Store) Collect(ctx context.Context) error {
	s.ring() // what is left from before
	wait := retryMin
	retry := time.NewTimer(wait)
	retry.Stop()
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-retry.C:
		}
		err := s.empty(ctx)
		if err == nil {
			wait = retryMin
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		s.needs.Log.Warn("mounts that nobody has are still there", "err", err, "retry", wait)
		retry.Reset(wait)
		wait = min(2*wait, retryMax)
	}
}

// empty undoes what nobody has any more, and returns what went wrong.
func (s *Store) empty(ctx context.Context) error {
	var all []place
	if err := s.needs.Records.View(func(tx *kv.Tx) (err error) {
		all, err = scanUnmounts(tx)
		return err
	}); err != nil {
		return err
	}
	var errs []error
	for _, p := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := s.undo(p)
		if err == nil {
			err = s.needs.Records.Release(ctx, func(tx *kv.Tx) error { return tx.Delete(unmountKey(p.ID)) })
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
