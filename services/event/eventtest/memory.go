package eventtest

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/filter"
)

// Memory is a bus that keeps every event for as long as it lives.
type Memory struct {
	epoch string

	// mu guards the fields below it.
	mu     sync.Mutex
	events []event.Event
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
	events, _ := m.after(0)
	return events
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
	m.events = append(m.events, e)
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
	m.mu.Lock()
	at := uint64(len(m.events))
	m.mu.Unlock()
	if c := o.After; c != nil {
		if c.Epoch != m.epoch || c.Sequence > at {
			return nil, fmt.Errorf("cursor %s/%d: %w", c.Epoch, c.Sequence, errdefs.ErrOutOfRange)
		}
		at = c.Sequence
	}
	return func(yield func(event.Event, error) bool) {
		for {
			events, added := m.after(at)
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

func (m *Memory) after(sequence uint64) ([]event.Event, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.events[sequence:len(m.events):len(m.events)], m.added
}
