package client

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
)

// patience is how long a call is made again while the daemon that answers it
// is away.
const patience = 15 * time.Second

// Limits of one call.
const (
	callTime  = time.Minute
	imageTime = 6 * time.Hour    // unpacking an image
	cleanTime = 10 * time.Second // cleaning up when the caller has gone away
)

// Pauses between tries.
const (
	pauseFirst = 10 * time.Millisecond
	pauseMax   = 500 * time.Millisecond
)

// again calls f, each time for at most limit (0 is none), until its error is not
// [errdefs.ErrUnavailable], patience is over or ctx ends. It tells f whether
// an earlier call may have been done already: then it did, if it did.
func again(ctx context.Context, limit time.Duration, f func(ctx context.Context, repeated bool) error) error {
	over := time.Now().Add(patience)
	repeated := false
	for pause := pauseFirst; ; pause = min(2*pause, pauseMax) {
		err := within(ctx, limit, func(ctx context.Context) error { return f(ctx, repeated) })
		if !errdefs.IsUnavailable(err) || time.Now().Add(pause).After(over) || !sleep(ctx, pause) {
			return err
		}
		repeated = true
	}
}

func within(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	return f(ctx)
}

// once is again for calls that need not know.
func once(ctx context.Context, f func(ctx context.Context) error) error {
	return again(ctx, callTime, func(ctx context.Context, _ bool) error { return f(ctx) })
}

// clean is a context for cleaning up, which goes on when ctx has ended.
func clean(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
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

// notExists is err unless it says that somebody else was faster.
func notExists(err error) error {
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return nil
	}
	return err
}

// onlyDone is err unless it says that there is nothing left to remove.
func onlyDone(err error) error {
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	return err
}
