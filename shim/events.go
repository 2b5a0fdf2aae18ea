package shim

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/runner"
)

const (
	eventsMax    = 8192                   // rows in the queue
	eventsRoom   = eventsMax / 2          // kept for what running processes still have to tell
	publishTime  = 5 * time.Second        // for one attempt
	publishPause = 2 * time.Second        // between attempts, at most
	publishFirst = 20 * time.Millisecond  // between the first two attempts
	holdFirst    = 5 * time.Millisecond   // before it is looked again whether events may be told
	holdPause    = 250 * time.Millisecond // at most
)

// A queue holds the events that nobody has yet, in memory and in a file, in
// the order in which they became true.
type queue struct {
	path string   // empty: events are for nobody
	hold *os.File // of the bundle, wherever it is moved
	log  *slog.Logger
	wake chan struct{} // of Publish; one token

	mu      sync.Mutex     // guards what follows
	rows    []runner.Event // oldest first
	last    time.Time      // of the newest event ever
	file    *os.File
	written int           // rows in the file, with those already taken
	empty   chan struct{} // closed when rows becomes empty; nil if nobody waits
}

func newQueue(bundle string, log *slog.Logger, anyone bool) *queue {
	q := &queue{log: log, wake: make(chan struct{}, 1)}
	if anyone {
		q.path = filepath.Join(bundle, eventsRecord)
		q.hold, _ = os.Open(bundle)
	}
	return q
}

// hasRoom reports whether something new, which will have more to tell, may
// begin.
func (q *queue) hasRoom() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.rows) < eventsRoom
}

// add puts an event at the end. It never fails and never waits for anyone: a
// row that does not reach the file is still told while the shim lives.
func (q *queue) add(e runner.Event) {
	if q.path == "" {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	e.Time = time.Now().UTC()
	if !e.Time.After(q.last) {
		e.Time = q.last.Add(1)
	}
	q.last = e.Time
	q.rows = append(q.rows, e)
	if err := q.saveLocked(e); err != nil {
		q.log.Warn("an event is kept in memory only", "topic", e.Topic, "err", err)
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) saveLocked(e runner.Event) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if q.file == nil {
		f, err := os.OpenFile(q.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		q.file = f
	}
	q.written++
	_, err = q.file.Write(append(b, '\n'))
	return err
}

func (q *queue) head() (runner.Event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.rows) == 0 {
		return runner.Event{}, false
	}
	return q.rows[0], true
}

// pop removes the oldest event, which somebody has now.
func (q *queue) pop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.rows = q.rows[1:]
	switch {
	case len(q.rows) == 0:
		q.rows = nil
		if q.file != nil {
			q.file.Truncate(0) // a row left in the file is told twice, no more
		}
		q.written = 0
		if q.empty != nil {
			close(q.empty)
			q.empty = nil
		}
	case q.written > 2*eventsMax:
		q.rewriteLocked()
	}
}

// rewriteLocked drops from the file the rows that were taken.
func (q *queue) rewriteLocked() {
	if q.file == nil || q.file.Truncate(0) != nil {
		return
	}
	rows := q.rows
	q.written = 0
	for _, e := range rows {
		if err := q.saveLocked(e); err != nil {
			q.log.Warn("an event is kept in memory only", "topic", e.Topic, "err", err)
		}
	}
}

// publish tells the events to p, one after the other, each until it is taken.
// It returns when ctx ends.
func (q *queue) publish(ctx context.Context, p runner.Publisher) error {
	if err := q.released(ctx); err != nil {
		return err
	}
	pause := publishFirst
	for {
		e, ok := q.head()
		if !ok {
			select {
			case <-q.wake:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		try, cancel := context.WithTimeout(ctx, publishTime)
		err := p.Publish(try, e)
		cancel()
		if err == nil || errors.Is(err, errdefs.ErrInvalidArgument) {
			if err != nil {
				q.log.Error("nobody will take an event", "topic", e.Topic, "err", err)
			}
			q.pop()
			pause = publishFirst
			continue
		}
		if pause == publishFirst {
			q.log.Warn("an event has to wait", "topic", e.Topic, "err", err)
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, publishPause)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// released returns when there is nothing any more that the daemon has to tell
// before. It is known by a file in the bundle, which the daemon made before it
// started us.
func (q *queue) released(ctx context.Context) error {
	for pause := holdFirst; q.hold != nil; pause = min(2*pause, holdPause) {
		var st unix.Stat_t
		if unix.Fstatat(int(q.hold.Fd()), holdRecord, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			q.hold.Close()
			q.hold = nil
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// drained is closed when nothing is left to tell.
func (q *queue) drained() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.empty == nil {
		q.empty = make(chan struct{})
	}
	if len(q.rows) == 0 {
		done := q.empty
		close(done)
		q.empty = nil
		return done
	}
	return q.empty
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.file != nil {
		q.file.Close()
		q.file = nil
	}
	if q.hold != nil {
		q.hold.Close()
		q.hold = nil
	}
}
