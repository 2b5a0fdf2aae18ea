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
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/runner"
)

// eventsFile is where our own shim keeps the events that nobody has taken yet,
// a [runner.Event] in each line. Some of them may have been taken.
const eventsFile = "events.json"

const (
	tellTime = 5 * time.Second // for one event
	lastTime = time.Second     // for those of a shim that died, before its end is told
)

// tellLeft tells the events that a shim has left in its bundle, in its name and
// in its words: one that was taken from the shim already is known again.
func (s *Store) tellLeft(ctx context.Context, namespace, dir string) error {
	name := filepath.Join(dir, eventsFile)
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() == 0 {
		return err
	}
	if s.forward == nil {
		s.log.Warn("events that a shim left are for nobody: dropped", "dir", dir)
		return nil
	}
	to, done := s.forward(namespace)
	defer done()
	lines := bufio.NewReader(f)
	for {
		line, readErr := lines.ReadBytes('\n')
		if readErr != nil && !errors.Is(readErr, io.EOF) {
			return readErr
		}
		var e runner.Event
		if len(line) > 0 && json.Unmarshal(line, &e) != nil {
			s.log.Error("an event that a shim left is damaged: dropped", "dir", dir)
		} else if len(line) > 0 {
			if err := s.tellOne(ctx, to, e); err != nil {
				return err
			}
		}
		if readErr != nil {
			return s.disk.RemoveTree(name)
		}
	}
}

func (s *Store) tellOne(ctx context.Context, to runner.Publisher, e runner.Event) error {
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	err := to.Publish(ctx, e)
	if errors.Is(err, errdefs.ErrInvalidArgument) {
		s.log.Error("an event that a shim left is refused: dropped", "topic", e.Topic, "err", err)
		return nil
	}
	return err
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
		{"events that a shim left wait for the bus", s.tellLeft},
		{"mounts of a task that is gone are still there", s.deactivate},
	} {
		if !s.insist(step.what, trash, func() error { return step.do(s.ctx, namespace, trash) }) {
			return
		}
	}
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
