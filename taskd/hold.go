package taskd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// holdFile keeps our own shim from telling anything. Events of containers are
// told by us and those of tasks by their shims: while the bus has not taken yet
// what was before a task, its shim waits.
const holdFile = "events.hold"

// hold puts a new task behind all that is to be told now, of its container and
// of the tasks before it.
func (s *Store) hold(ctx context.Context, l *live) error {
	s.tellBefore(ctx, l.key())
	w, err := s.outbox.Waiting()
	if err != nil || w.Depth == 0 {
		return err
	}
	if err := s.disk.WriteFile(l.file(holdFile), nil); err != nil {
		return err
	}
	s.wg.Go(func() { s.release(l.dir, l.trash(l.record().Instance)) })
	return nil
}

// release lets a shim tell its events when the bus has ours. Its bundle may be
// moved out of sight meanwhile: dirs are where it is first, and then.
func (s *Store) release(dirs ...string) {
	held := false
	for _, dir := range dirs {
		_, err := os.Lstat(filepath.Join(dir, holdFile))
		held = held || !errors.Is(err, fs.ErrNotExist)
	}
	if !held || s.outbox.Told(s.ctx) != nil {
		return // what is held still the next start releases
	}
	for _, dir := range dirs {
		if err := s.disk.RemoveTree(filepath.Join(dir, holdFile)); err != nil {
			s.log.Warn("a shim cannot be released", "dir", dir, "err", err)
		}
	}
}
