package gatetest

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/ident"
)

// Memory is the gates of this process.
type Memory struct {
	// mu guards gates.
	mu    sync.Mutex
	gates map[string]gate.Gate
}

var _ gate.Asker = (*Memory)(nil)

// NewMemory returns an asker whom nobody answers.
func NewMemory() *Memory { return &Memory{gates: make(map[string]gate.Gate)} }

// Serve has g answer by a name until stop is called.
func (m *Memory) Serve(name string, g gate.Gate) (stop func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gates[name] = g
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.gates, name)
	}
}

// Ask implements gate.Asker.
func (m *Memory) Ask(ctx context.Context, name string, r gate.Request) error {
	if err := ident.Check(name); err != nil {
		return err
	}
	if err := r.Check(); err != nil {
		return err
	}
	m.mu.Lock()
	g := m.gates[name]
	m.mu.Unlock()
	if g == nil {
		return fmt.Errorf("gate %s: nobody answers: %w", name, errdefs.ErrNotFound)
	}
	answer := make(chan error, 1)
	go func() { answer <- g.Pass(ctx, r) }()
	select {
	case err := <-answer:
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return gate.Denied(name, err.Error())
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
