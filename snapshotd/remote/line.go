package remote

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// callsMax is how many calls are under way at once; the others wait.
	callsMax = 64

	// After failuresMax calls in a row without an answer the next are refused
	// for restTime. Then one tries again.
	failuresMax = 3
	restTime    = 5 * time.Second
)

// A line is the way to a process that may not answer.
type line struct {
	name  string
	now   func() time.Time
	calls chan struct{} // has an item for each call under way

	mu       sync.Mutex // guards what is below; a leaf
	failures int        // in a row
	rest     time.Time  // until then nobody calls
}

func newLine(name string) *line {
	return &line{name: name, now: time.Now, calls: make(chan struct{}, callsMax)}
}

// call calls f, which has to end with its context, within a limit. No answer is
// [errdefs.ErrUnavailable].
func (l *line) call(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	if err := l.open(); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case l.calls <- struct{}{}:
		defer func() { <-l.calls }()
	case <-limited.Done():
		return l.silent(ctx, limited.Err())
	}
	err := f(limited)
	// How the other end tells of the deadline depends on which end saw it first.
	late := limited.Err() != nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled))
	if late || errors.Is(err, errdefs.ErrUnavailable) {
		return l.silent(ctx, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures, l.rest = 0, time.Time{}
	return err
}

// open is an error while nobody calls.
func (l *line) open() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	wait := l.rest.Sub(l.now())
	if wait > 0 {
		return fmt.Errorf("snapshotter %s does not answer, and is asked again in %v: %w", l.name, wait.Round(time.Second), errdefs.ErrUnavailable)
	}
	if l.failures >= failuresMax {
		// This one tries, and until it knows more the others do not.
		l.rest = l.now().Add(restTime)
	}
	return nil
}

// silent is what a call without an answer returns.
func (l *line) silent(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err() // the caller's end says nothing of the other
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failures++; l.failures >= failuresMax {
		l.rest = l.now().Add(restTime)
	}
	return fmt.Errorf("snapshotter %s does not answer: %v: %w", l.name, err, errdefs.ErrUnavailable)
}
