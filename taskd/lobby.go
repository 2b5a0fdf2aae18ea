package taskd

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/gantryd/gantry/services/gate"
)

// A lobby is who waits for a gate.
type lobby struct {
	// mu guards all, and is a leaf.
	mu  sync.Mutex
	all map[*gate.Wait]struct{}
}

// enter notes a wait until leave is called.
func (l *lobby) enter(w gate.Wait) (leave func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = make(map[*gate.Wait]struct{})
	}
	l.all[&w] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.all, &w)
	}
}

// Waiting implements gate.Lobby.
func (l *lobby) Waiting(context.Context) ([]gate.Wait, error) {
	l.mu.Lock()
	var all []gate.Wait
	for w := range l.all {
		all = append(all, *w)
	}
	l.mu.Unlock()
	slices.SortFunc(all, func(a, b gate.Wait) int {
		return cmp.Or(cmp.Compare(a.Gate, b.Gate), a.Since.Compare(b.Since), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Container, b.Container))
	})
	return all, nil
}
