package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// CollectExternal has external snapshotters remove the snapshots that are gone,
// until ctx ends. Each has a turn of its own: one that hangs keeps nobody. It is
// a work of the daemon.
func (s *Store) CollectExternal(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, e := range s.externals {
		wg.Go(func() { s.collectFrom(ctx, e) })
	}
	<-ctx.Done()
	wg.Wait()
	return nil
}

func (s *Store) collectFrom(ctx context.Context, e *external) {
	e.ring() // what is left from before
	wait := retryMin
	retry := time.NewTimer(wait)
	retry.Stop()
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.wake:
		case <-retry.C:
		}
		err := s.emptyExternal(ctx, e)
		if err == nil {
			wait = retryMin
			continue
		}
		if ctx.Err() != nil {
			return
		}
		s.log.Warn("removed snapshots are still with their snapshotter", "snapshotter", e.name, "err", err, "retry", wait)
		retry.Reset(wait)
		wait = min(2*wait, retryMax)
	}
}

// ring wakes the collector.
func (e *external) ring() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// emptyExternal removes what is in the trash of one snapshotter, children before
// their parents: as long as something goes, what was refused is tried again.
func (s *Store) emptyExternal(ctx context.Context, e *external) error {
	all, err := s.trashed()
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(t trashed) bool { return t.Snapshotter != e.name })
	// A child is nearly always younger.
	slices.SortFunc(all, func(a, b trashed) int { return int(int64(b.id - a.id)) })
	removed := ""
	for {
		var errs []error
		var left []trashed
		for _, t := range all {
			ns, err := s.discardExternal(ctx, e, t)
			switch {
			case err == nil:
				removed = ns
				continue
			case errors.Is(err, errdefs.ErrUnavailable), ctx.Err() != nil:
				return err // and so it would be for the others
			}
			left, errs = append(left, t), append(errs, fmt.Errorf("snapshot %s: %w", t.Key, err))
		}
		if len(left) == 0 || len(left) == len(all) {
			if removed != "" {
				errs = append(errs, e.Tidy(ctx, removed))
			}
			return errors.Join(errs...)
		}
		all = left
	}
}

// discardExternal removes what the snapshotter has of one id, and then the rows.
// What another record uses too stays. It returns the namespace that was named.
func (s *Store) discardExternal(ctx context.Context, e *external, t trashed) (ns string, err error) {
	release, _ := s.tryHold(t.id)
	if release == nil {
		return "", errBusy
	}
	defer release()
	var b begun
	var still bool // a backup may have been restored meanwhile that knows better
	ns, _, _ = strings.Cut(t.Key, "/")
	if err := s.db.View(func(tx *kv.Tx) (err error) {
		if still, err = isRow(tx, trashKey(t.id)); err != nil || !still {
			return err
		}
		if b, _, err = begunOf(tx, t.id); err != nil {
			return err
		}
		// Who adopted it said so in its own namespace.
		if err := tx.GetJSON(sharedKey(e.name, t.Key, t.id), &ns); !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		return nil
	}); err != nil || !still {
		return "", err
	}
	gone := []driver.Ref{{ID: t.id, Namespace: ns, Key: t.Key}}
	if b.Ref.Key != "" && b.Ref.Key != t.Key {
		gone = append(gone, b.Ref) // a commit that may have been done
	}
	for _, r := range gone {
		if err := s.removeUnused(ctx, e, r); err != nil {
			return "", err
		}
	}
	return ns, s.db.Release(ctx, func(tx *kv.Tx) error {
		return errors.Join(tx.Delete(trashKey(t.id)), tx.Delete(begunKey(t.id)), tx.Delete(sharedKey(e.name, t.Key, t.id)), forgetMounts(tx, t.id))
	})
}

// removeUnused removes a snapshot unless another record is about it. Nobody
// adopts it meanwhile.
func (s *Store) removeUnused(ctx context.Context, e *external, r driver.Ref) error {
	release, _ := s.tryHold(sharedID(e.name, r.Key))
	if release == nil {
		return errBusy
	}
	defer release()
	used := false
	if err := s.db.View(func(tx *kv.Tx) (err error) {
		used, err = usedByOthers(tx, e.name, r)
		return err
	}); err != nil || used {
		return err
	}
	return e.Remove(ctx, r)
}

// usedByOthers tells whether a snapshot of an external snapshotter has another
// record than that of r's id: one that adopted it, or the one that it was made
// for.
func usedByOthers(tx *kv.Tx, snapshotter string, r driver.Ref) (bool, error) {
	for key := range tx.Scan(kv.Key("shared", snapshotter, r.Key, ""), nil) {
		if id, err := idOf(key); err != nil || id != r.ID {
			return err == nil, err
		}
	}
	parts := strings.SplitN(r.Key, "/", 3)
	if len(parts) != 3 {
		return false, nil
	}
	id, err := strconv.ParseUint(parts[1], 10, 64)
	if err != nil || id == r.ID {
		return false, nil //nolint:nilerr // it is a name of another form
	}
	var o owner
	switch err := tx.GetJSON(dirKey(id), &o); {
	case errors.Is(err, errdefs.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	}
	of, err := o.shelf().get(tx, o.Name)
	return err == nil && o.Snapshotter == snapshotter && o.shelf().ref(o.Name, of).Key == r.Key, err
}
