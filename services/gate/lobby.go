package gate

import (
	"context"
	"time"
)

// A Wait is a container that waits for the answer of a gate.
type Wait struct {
	Gate      string
	Namespace string
	Container string
	Since     time.Time
}

// A Lobby knows who waits.
type Lobby interface {
	// Waiting returns everybody who waits now, in order of gates and of time.
	Waiting(ctx context.Context) ([]Wait, error)
}
