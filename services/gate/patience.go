package gate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// Patience says how long to wait for a gate.
type Patience struct {
	Answer time.Duration // for its answer, in all
	Absent time.Duration // for somebody to answer by its name, as while a plugin restarts
}

const (
	// A gate that nobody answers by is found within pauseMax of its return.
	pauseMin = 20 * time.Millisecond
	pauseMax = 250 * time.Millisecond

	// The question may have been lost with a plugin that ended. So it is put
	// again after repeatMin, and then after twice as long each time, up to
	// repeatMax.
	repeatMin = time.Second
	repeatMax = 4 * time.Second
)

// Ask asks a gate until it answers, as often as it takes. Its outcomes are those
// of [Asker.Ask], but that a gate that does not answer in time, or by whose name
// nobody answers, is [errdefs.ErrAborted]: it is not known that the container
// may not start, and who wants it to may try again.
func (p Patience) Ask(ctx context.Context, a Asker, name string, r Request) error {
	inner, cancel := context.WithTimeout(ctx, p.Answer)
	q := &asking{ctx: inner, ask: func() error { return a.Ask(inner, name, r) }, answers: make(chan error)}
	defer q.wg.Wait()
	defer cancel()
	err := q.until(p.Absent)
	switch {
	case err == nil || errors.Is(err, errdefs.ErrFailedPrecondition):
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errdefs.ErrNotFound):
		return fmt.Errorf("nobody answers gate %s, for %v: %w", name, p.Absent, errdefs.ErrAborted)
	case errors.Is(err, errdefs.ErrUnavailable):
		return fmt.Errorf("gate %s cannot be asked, for %v: %v: %w", name, p.Absent, err, errdefs.ErrAborted)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("gate %s did not answer within %v: %w", name, p.Answer, errdefs.ErrAborted)
	}
	return err
}

// asking is one gate that is asked. Any of its questions may be the one that is
// answered.
type asking struct {
	ctx     context.Context
	ask     func() error
	answers chan error
	wg      sync.WaitGroup // of the questions under way
}

// put puts the question once more.
func (q *asking) put() {
	q.wg.Go(func() {
		err := q.ask()
		select {
		case q.answers <- err:
		case <-q.ctx.Done():
		}
	})
}

// until returns the first answer, or the last failure when there was nobody to
// ask for as long as absent.
func (q *asking) until(absent time.Duration) error {
	pause, repeat := pauseMin, repeatMin
	var alone time.Time // since when nobody is there; zero if somebody is
	failed := false     // the last question; else somebody has it
	next := time.NewTimer(repeat)
	defer next.Stop()
	q.put()
	for {
		select {
		case err := <-q.answers:
			if !errors.Is(err, errdefs.ErrNotFound) && !errors.Is(err, errdefs.ErrUnavailable) {
				return err
			}
			if alone.IsZero() {
				alone, pause = time.Now(), pauseMin
			}
			if time.Since(alone) >= absent {
				return err
			}
			failed = true
			next.Reset(pause)
			pause = min(2*pause, pauseMax)
		case <-next.C:
			if failed {
				failed, repeat = false, repeatMin
			} else {
				alone, repeat = time.Time{}, min(2*repeat, repeatMax)
			}
			q.put()
			next.Reset(repeat)
		case <-q.ctx.Done():
			return q.ctx.Err()
		}
	}
}
