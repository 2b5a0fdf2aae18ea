package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/gantryd/gantry/snapshotd/driver"
)

// Spent are trees of committed snapshots that may have something left of when
// they were active. They are in memory only: Open looks at all.
type spent struct {
	mu  sync.Mutex
	all map[uint64]spentTree
}

type spentTree struct {
	d   driver.Finisher
	ref driver.Ref
}

// note puts a committed snapshot on the list, if its driver leaves anything.
func (s *spent) note(d driver.Driver, ref driver.Ref) (noted bool) {
	f, ok := d.(driver.Finisher)
	if !ok {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[uint64]spentTree)
	}
	s.all[ref.ID] = spentTree{f, ref}
	return true
}

func (s *spent) list() []spentTree {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.all))
}

func (s *spent) drop(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, id)
}

// finish removes what is left of committed snapshots. It returns what went
// wrong with those that stay.
func (s *Store) finish(ctx context.Context) error {
	var errs []error
	for _, t := range s.spent.list() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.finishOne(ctx, t); err != nil {
			errs = append(errs, fmt.Errorf("directory %d: %w", t.ref.ID, err))
			continue
		}
		s.spent.drop(t.ref.ID)
	}
	return errors.Join(errs...)
}

func (s *Store) finishOne(ctx context.Context, t spentTree) error {
	release, _ := s.tryHold(t.ref.ID)
	if release == nil {
		return errBusy
	}
	defer release()
	slow, cancel := context.WithTimeout(ctx, removeTime)
	defer cancel()
	return t.d.Finish(slow, t.ref)
}
