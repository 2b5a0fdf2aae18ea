package eventbus

import (
	"slices"
	"sync"

	"github.com/gantryd/gantry/services/event"
)

const (
	windowEvents = 1024
	windowBytes  = 4 << 20

	// blockEvents, or blockBytes and one event, are what a subscriber that
	// does not go on keeps in memory.
	blockEvents = 64
	blockBytes  = 64 << 10
)

// A window is the latest events of the stream, without a hole.
type window struct {
	// mu guards the fields below it.
	mu     sync.Mutex
	blocks []block       // the oldest first; none is empty
	next   uint64        // sequence of the event to come
	events int           // in blocks
	bytes  int           // of events
	added  chan struct{} // closed, and made anew, when there are more
}

// A block is some events in an array of their own. Subscribers hold parts of it,
// so that nothing in it is changed.
type block struct {
	first  uint64
	events []event.Event
	bytes  int
}

func (b block) full() bool { return len(b.events) == blockEvents || b.bytes >= blockBytes }

// reset makes the window empty; the event to come is the one at next.
func (w *window) reset(next uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.blocks, w.next, w.events, w.bytes = nil, next, 0, 0
	w.wakeLocked()
}

// add adds events that follow each other.
func (w *window) add(events []event.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range events {
		w.addLocked(e)
	}
	for len(w.blocks) > 1 && (w.events > windowEvents || w.bytes > windowBytes) {
		w.events, w.bytes = w.events-len(w.blocks[0].events), w.bytes-w.blocks[0].bytes
		w.blocks = slices.Delete(w.blocks, 0, 1)
	}
	w.wakeLocked()
}

func (w *window) addLocked(e event.Event) {
	if n := len(w.blocks); n == 0 || w.blocks[n-1].full() {
		w.blocks = append(w.blocks, block{first: w.next, events: make([]event.Event, 0, blockEvents)})
	}
	last := &w.blocks[len(w.blocks)-1]
	last.events, last.bytes = append(last.events, e), last.bytes+size(e)
	w.next, w.events, w.bytes = w.next+1, w.events+1, w.bytes+size(e)
}

func (w *window) wakeLocked() {
	if w.added != nil {
		close(w.added)
	}
	w.added = make(chan struct{})
}

// from returns some events from a sequence on. If there are none yet, added is
// closed when there may be; if they are gone, behind is true.
func (w *window) from(sequence uint64) (events []event.Event, added <-chan struct{}, behind bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.added == nil {
		w.added = make(chan struct{})
	}
	if sequence < w.beginLocked() {
		return nil, nil, true
	}
	for _, b := range slices.Backward(w.blocks) {
		if n := len(b.events); sequence >= b.first && sequence < b.first+uint64(n) {
			return b.events[sequence-b.first : n : n], w.added, false
		}
	}
	return nil, w.added, false
}

func (w *window) begin() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.beginLocked()
}

func (w *window) beginLocked() uint64 {
	if len(w.blocks) > 0 {
		return w.blocks[0].first
	}
	return w.next
}

func size(e event.Event) int {
	return 256 + len(e.ID) + len(e.Subject) + len(e.Type) + len(e.JSON) + len(e.Raw)
}
