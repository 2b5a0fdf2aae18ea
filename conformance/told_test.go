package conformance

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// errMissing is what may still come.
var errMissing = errors.New("is not told")

// check says what of what one subscriber was told is wrong, or missing yet.
func (c *chaos) check(all []told) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	lives := make(map[string][]told)
	seen := make(map[string]told)
	for _, e := range all {
		old, again := seen[e.ID]
		switch {
		case again && old.what() != e.what():
			return fmt.Errorf("%s: id %s has two contents:\n%+v\n%+v", e.Subject, e.ID, old, e)
		case again && old.Epoch == e.Epoch && old.Sequence != e.Sequence:
			return fmt.Errorf("%s: id %s is at %d and at %d of the stream", e.Subject, e.ID, old.Sequence, e.Sequence)
		}
		seen[e.ID] = e
		if !again && e.Namespace == chaosNamespace && slices.Contains(lifeTopics, e.Topic) {
			lives[e.Subject] = append(lives[e.Subject], e)
		}
	}
	var missing error
	for id, l := range c.lives {
		if err := l.check(lives[id]); errors.Is(err, errMissing) {
			missing = fmt.Errorf("%s: %w", id, err)
		} else if err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
	}
	return missing
}

// check says what is wrong with what is told of one container. A task that taskd
// had no time to tell its client of is undone, and made again.
func (l *life) check(all []told) error {
	got := make(map[string]told)
	for _, e := range all {
		place := slices.Index(lifeTopics, e.Topic)
		for _, later := range lifeTopics[place:] {
			if _, ok := got[later]; !ok {
				continue
			}
			if l.shot && strings.HasPrefix(later, "/tasks/") {
				continue // taskd tells its end, which it may have told itself
			}
			if e.Topic != "/tasks/create" || !strings.HasPrefix(later, "/tasks/") {
				return fmt.Errorf("%s is told after %s", e.Topic, later)
			}
			delete(got, later)
		}
		got[e.Topic] = e
	}
	for n, topic := range lifeTopics {
		e, ok := got[topic]
		if !ok && n < l.acked {
			return fmt.Errorf("%s %w", topic, errMissing)
		}
		ends := topic == "/tasks/exit" || topic == "/tasks/delete"
		if ok && ends && l.done && !l.shot && e.Status != l.status {
			return fmt.Errorf("%s says status %d, want %d", topic, e.Status, l.status)
		}
	}
	return nil
}

// checkOrder holds that all were told the same in the same order, without a
// hole.
func (c *chaos) checkOrder(watchers []watcher) {
	type place struct {
		epoch    string
		sequence uint64
	}
	at := make(map[place]string)
	for _, w := range watchers {
		all, _ := w.told()
		var last told
		for _, e := range all {
			p := place{e.Epoch, e.Sequence}
			if id, ok := at[p]; ok && id != e.ID {
				c.t.Errorf("%s: %v is %s, and %s to others", w.name(), p, e.ID, id)
			}
			at[p] = e.ID
			// What was told already may be told again, not what is later.
			if last.Epoch == e.Epoch && e.Sequence > last.Sequence+1 {
				c.t.Errorf("%s: after %d comes %d", w.name(), last.Sequence, e.Sequence)
			}
			if last.Epoch == e.Epoch && e.Sequence < last.Sequence && !w.mayRepeat() {
				c.t.Errorf("%s: %d comes after %d", w.name(), e.Sequence, last.Sequence)
			}
			if last.Epoch != "" && last.Epoch != e.Epoch {
				c.t.Errorf("%s: the stream %s became %s", w.name(), last.Epoch, e.Epoch)
			}
			last = e
		}
	}
}

// eventuallyTold waits until what a subscriber was told passes, and says all
// that is known of the container that keeps it from that.
func (s *suite) eventuallyTold(w watcher, check func([]told) error) {
	s.t.Helper()
	for deadline := time.Now().Add(drainTime); ; {
		all, err := w.told()
		if err == nil {
			err = check(all)
		}
		if err == nil {
			return
		}
		if !errors.Is(err, errMissing) || time.Now().After(deadline) {
			s.t.Errorf("%s: %v", w.name(), err)
			id, _, _ := strings.Cut(err.Error(), ":")
			s.explain(w, id, all)
			return
		}
		<-time.After(100 * time.Millisecond)
	}
}

// explain says what a subscriber was told of a container, and what the daemons
// logged of it.
func (s *suite) explain(w watcher, id string, all []told) {
	s.t.Helper()
	for _, e := range all {
		if e.Subject == id {
			s.t.Logf("%s was told %d %s: %s %.200s", w.name(), e.Sequence, e.ID, e.Topic, e.Content)
		}
	}
	for line := range strings.Lines(s.log.String()) {
		if strings.Contains(line, `"`+id+`"`) || strings.Contains(line, "ended (") {
			s.t.Logf("%.400s", strings.TrimSpace(line))
		}
	}
}
