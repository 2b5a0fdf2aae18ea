package netd

import (
	"context"
	"sync"
)

// turns has those who work on one container do it one after the other, and
// those who work on different ones not wait for each other.
type turns struct {
	mu    sync.Mutex
	holds map[key]*turn
}

type turn struct {
	free  chan struct{} // of one place
	users int           // who holds it or waits; guarded by turns.mu
}

// take returns when it is the caller's turn, and what ends it.
func (t *turns) take(ctx context.Context, k key) (release func(), err error) {
	t.mu.Lock()
	if t.holds == nil {
		t.holds = make(map[key]*turn)
	}
	h := t.holds[k]
	if h == nil {
		h = &turn{free: make(chan struct{}, 1)}
		t.holds[k] = h
	}
	h.users++
	t.mu.Unlock()
	select {
	case h.free <- struct{}{}:
		return func() { <-h.free; t.leave(k, h) }, nil
	case <-ctx.Done():
		t.leave(k, h)
		return nil, ctx.Err()
	}
}

// busy says whether somebody works on k, or waits for it.
func (t *turns) busy(k key) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.holds[k] != nil
}

func (t *turns) leave(k key, h *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h.users--; h.users == 0 {
		delete(t.holds, k)
	}
}
