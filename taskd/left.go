package taskd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/runner"
)

// eventsFile is where our own shim keeps the events that nobody has taken yet,
// a [runner.Event] in each line. Some of them may have been taken.
const eventsFile = "events.json"

const (
	// tellMost is how many events that a shim left are told in one transaction.
	tellMost = 128

	// A shim that is told to end tells its last events at once, if the bus is
	// there: it is given lastTime before they are told for it.
	lastTime  = 20 * time.Millisecond
	lastPause = time.Millisecond
)

// mayLeave notes a bundle on its way out.
func (s *Store) mayLeave(trash string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := ownerOf(trash)
	s.untold[k] = append(s.untold[k], trash)
}

// leftNothing notes that all that was left in a bundle is told.
func (s *Store) leftNothing(trash string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := ownerOf(trash)
	s.untold[k] = slices.DeleteFunc(s.untold[k], func(t string) bool { return t == trash })
	if len(s.untold[k]) == 0 {
		delete(s.untold, k)
	}
}

// ownerOf returns whose bundle is on its way out: see bundle.remove.
func ownerOf(trash string) key {
	name := strings.TrimPrefix(filepath.Base(trash), ".")
	return key{filepath.Base(filepath.Dir(trash)), name[:max(strings.LastIndexByte(name, '-'), 0)]}
}

// tellBefore has what earlier shims of a container have left to tell told before
// what the caller does next is. A shim that is still there may tell it as well:
// the bus knows it again.
func (s *Store) tellBefore(ctx context.Context, k key) {
	s.mu.Lock()
	dirs := slices.Clone(s.untold[k])
	s.mu.Unlock()
	for over := time.Now().Add(lastTime); ; {
		dirs = slices.DeleteFunc(dirs, func(dir string) bool {
			st, err := os.Stat(filepath.Join(dir, eventsFile))
			return err != nil || st.Size() == 0
		})
		if len(dirs) == 0 {
			return
		}
		if time.Now().After(over) || !s.pause(lastPause) {
			break
		}
	}
	for _, dir := range dirs {
		if err := s.tellLeft(ctx, k.namespace, dir); err != nil {
			s.log.Warn("events that a shim left are told later", "namespace", k.namespace, "task", k.id, "err", err)
		}
	}
}

// tellLeft puts the events that a shim has left in its bundle into the outbox,
// in its words: one that the bus has from the shim already is known again.
func (s *Store) tellLeft(ctx context.Context, namespace, dir string) error {
	left, err := s.left(namespace, dir)
	if err != nil || len(left) == 0 {
		return err
	}
	for some := range slices.Chunk(left, tellMost) {
		if err := s.db.Release(ctx, func(tx *kv.Tx) error {
			for _, e := range some {
				if err := s.outbox.Add(ctx, tx, e); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// tellRest tells what a shim that has ended has left, once.
func (s *Store) tellRest(ctx context.Context, namespace, dir string) error {
	if err := s.tellLeft(ctx, namespace, dir); err != nil {
		return err
	}
	return s.disk.RemoveTree(filepath.Join(dir, eventsFile))
}

// left reads the events that a shim has left in its bundle.
func (s *Store) left(namespace, dir string) ([]event.Event, error) {
	if s.told == nil {
		return nil, nil
	}
	f, err := os.Open(filepath.Join(dir, eventsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var left []event.Event
	for lines := bufio.NewReader(f); ; {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return left, nil // what has no end was not written to its end
		}
		if err != nil {
			return nil, err
		}
		var e runner.Event
		err = json.Unmarshal(line, &e)
		var told event.Event
		if err == nil {
			told, err = s.told(namespace, e)
		}
		if err == nil {
			err = told.Check()
		}
		if err != nil {
			s.log.Error("an event that a shim left is damaged: dropped", "dir", dir, "err", err)
			continue
		}
		left = append(left, told)
	}
}

// dump removes what is left of a bundle when its shim has gone and everything
// in it is told, and the mounts that were made for it. What it does not come to,
// the next start does.
func (s *Store) dump(trash string) {
	namespace := filepath.Base(filepath.Dir(trash))
	for _, step := range []struct {
		what string
		do   func(ctx context.Context, namespace, trash string) error
	}{
		{"events that a shim left are not told yet", s.tellRest},
		{"mounts of a task that is gone are still there", s.deactivate},
	} {
		if !s.insist(step.what, trash, func() error { return step.do(s.ctx, namespace, trash) }) {
			return
		}
	}
	s.leftNothing(trash)
	if err := s.disk.RemoveTree(trash); err != nil {
		s.log.Warn("what is left of a bundle cannot be removed", "dir", trash, "err", err)
	}
}

// insist does something until it succeeds, and says once that it does not. It
// reports whether it did before the end of the daemon.
func (s *Store) insist(what, dir string, do func() error) bool {
	said := false
	for pause := range pauses() {
		if s.ctx.Err() != nil {
			return false
		}
		err := do()
		if err == nil {
			return true
		}
		if !said {
			s.log.Warn(what, "dir", dir, "err", err)
			said = true
		}
		if !s.pause(pause) {
			return false
		}
	}
	return false
}

// dumpFound removes what a daemon before us has left of a bundle. Its task was
// deleted; its shim may not have been told to end. It is told by a signal,
// because another shim may listen at its address by now.
func (s *Store) dumpFound(trash string) {
	r, err := bundle{dir: trash}.load()
	if err == nil && r.Shim != (process{}) && !s.shared(nil, r.Shim) {
		s.terminate(r.Shim)
		s.outlive(r.Shim)
	}
	s.dump(trash)
}
