package eventtest

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/filter"
)

// Memory is a bus that keeps every event for as long as it lives, or until it is
// told to forget it.
type Memory struct {
	epoch string

	// mu guards the fields below it.
	mu     sync.Mutex
	events []event.Event
	times  []time.Time // when each was taken in
	gone   uint64      // how many of the oldest are forgotten
	seen   map[string]bool
	added  chan struct{} // closed, and made anew, when events grows
}

var _ event.Bus = (*Memory)(nil)

// NewMemory returns an empty bus.
func NewMemory() *Memory {
	return &Memory{epoch: fmt.Sprintf("memory-%p", new(int)), seen: make(map[string]bool), added: make(chan struct{})}
}

// Events returns what was published, in order.
func (m *Memory) Events() []event.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clip(m.events)
}

// Forget lets what is published by now go, as a bus does that keeps no more
// than it has place for. Who has not read it has a gap.
func (m *Memory) Forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone = uint64(len(m.events))
}

// Publish implements event.Publisher.
func (m *Memory) Publish(ctx context.Context, e event.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := e.Check(); err != nil {
		return err
	}
	e = e.Stamp(time.Now(), "memory")
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen[e.ID] {
		return nil
	}
	m.seen[e.ID] = true
	e.Subject = e.About()
	e.Epoch, e.Sequence = m.epoch, uint64(len(m.events)+1)
	m.events, m.times = append(m.events, e), append(m.times, time.Now())
	close(m.added)
	m.added = make(chan struct{})
	return nil
}

// Subscribe implements event.Subscriber.
func (m *Memory) Subscribe(ctx context.Context, o event.SubscribeOptions) (iter.Seq2[event.Event, error], error) {
	f, err := filter.Parse(o.Filters...)
	if err != nil {
		return nil, err
	}
	at, err := m.begin(o)
	if err != nil {
		return nil, err
	}
	if o.Reached != nil {
		o.Reached(event.Cursor{Epoch: m.epoch, Sequence: at})
	}
	return func(yield func(event.Event, error) bool) {
		for {
			events, added, err := m.after(at)
			if err != nil {
				yield(event.Event{}, err)
				return
			}
			for _, e := range events {
				if ctx.Err() != nil {
					break
				}
				if at = e.Sequence; f.Match(e.Fields()) && !yield(e, nil) {
					return
				}
			}
			if len(events) == 0 {
				select {
				case <-added:
				case <-ctx.Done():
				}
			}
			if ctx.Err() != nil {
				yield(event.Event{}, ctx.Err())
				return
			}
		}
	}, nil
}

// begin returns the sequence past which a subscription begins.
func (m *Memory) begin(o event.SubscribeOptions) (uint64, error) {
	if err := o.Check(); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	at := uint64(len(m.events))
	switch {
	case o.After != nil && (o.After.Epoch != m.epoch || o.After.Sequence > at):
		return 0, &event.Gap{From: *o.After, To: event.Cursor{Epoch: m.epoch, Sequence: m.gone}}
	case o.After != nil:
		at = o.After.Sequence
	case !o.Since.IsZero():
		for at > m.gone && !m.times[at-1].Before(o.Since) {
			at--
		}
	}
	return at, m.gapLocked(at)
}

// gapLocked is an error if the event past a sequence is forgotten.
func (m *Memory) gapLocked(at uint64) error {
	if at < m.gone {
		return &event.Gap{From: event.Cursor{Epoch: m.epoch, Sequence: at}, To: event.Cursor{Epoch: m.epoch, Sequence: m.gone}}
	}
	return nil
}

func (m *Memory) after(sequence uint64) ([]event.Event, <-chan struct{}, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.events[sequence:len(m.events):len(m.events)], m.added, m.gapLocked(sequence)
}
