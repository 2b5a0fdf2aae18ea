package client

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
)

// patience is how long a call is made again while the daemon that answers it
// is away.
const patience = 15 * time.Second

// cleanTime is how long cleaning up may take when the caller has gone away.
const cleanTime = 10 * time.Second

// Pauses between tries.
const (
	pauseFirst = 10 * time.Millisecond
	pauseMax   = 500 * time.Millisecond
)

// again calls f until its error is not [errdefs.ErrUnavailable], patience is
// over or ctx ends. Doing f twice must be doing it once.
func again(ctx context.Context, f func() error) error {
	over := time.Now().Add(patience)
	for pause := pauseFirst; ; pause = min(2*pause, pauseMax) {
		err := f()
		if !errdefs.IsUnavailable(err) || time.Now().Add(pause).After(over) || !sleep(ctx, pause) {
			return err
		}
	}
}

// sleep is false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
