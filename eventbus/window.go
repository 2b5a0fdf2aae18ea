package eventbus

import (
	"sync"

	"github.com/gantryd/gantry/services/event"
)

const (
	windowEvents = 1024
	windowBytes  = 4 << 20
)

// A window is the latest events of the stream, without a hole.
type window struct {
	// mu guards the fields below it.
	mu     sync.Mutex
	first  uint64 // sequence of events[0], or of the event to come
	events []event.Event
	bytes  int
	added  chan struct{} // closed, and made anew, when events grows
}

// reset makes the window empty; the event to come is the one at first.
func (w *window) reset(first uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.first, w.events, w.bytes = first, nil, 0
	w.wakeLocked()
}

func (w *window) add(e event.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
	w.bytes += size(e)
	drop := 0
	for ; len(w.events)-drop > windowEvents || w.bytes > windowBytes; drop++ {
		w.bytes -= size(w.events[drop])
	}
	// Subscribers hold parts of the same array, so that nothing in it is
	// changed; append moves what is left to a new one now and then.
	w.first += uint64(drop)
	w.events = w.events[drop:]
	w.wakeLocked()
}

func (w *window) wakeLocked() {
	if w.added != nil {
		close(w.added)
	}
	w.added = make(chan struct{})
}

// from returns the events from a sequence on. If there are none yet, added is
// closed when there may be; if they are gone, behind is true.
func (w *window) from(sequence uint64) (events []event.Event, added <-chan struct{}, behind bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.added == nil {
		w.added = make(chan struct{})
	}
	if sequence < w.first {
		return nil, nil, true
	}
	i := sequence - w.first
	if i >= uint64(len(w.events)) {
		return nil, w.added, false
	}
	return w.events[i:len(w.events):len(w.events)], w.added, false
}

// has says whether what comes behind a sequence is here, or still to come.
func (w *window) has(sequence uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return sequence+1 >= w.first && sequence+1 <= w.first+uint64(len(w.events))
}

func (w *window) begin() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.first
}

func size(e event.Event) int {
	return 256 + len(e.ID) + len(e.Subject) + len(e.Type) + len(e.JSON) + len(e.Raw)
}
