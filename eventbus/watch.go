package eventbus

import (
	"context"
	"time"
)

// watchTime is between two looks at the stream: what is too old goes, and a
// stream that could not be written is tried.
const watchTime = 2 * time.Second

// Watch keeps the stream in its limits and says when it cannot be written, until
// ctx ends. It is a work of the daemon. A stream whose disk failed takes events
// again when the disk does: what was on its way to it was refused.
func (b *Bus) Watch(ctx context.Context) error {
	var since time.Time // when it failed; zero if it did not
	for {
		if err := pause(ctx, watchTime); err != nil {
			return err
		}
		switch err := b.journal.Retain(); {
		case err == nil && !since.IsZero():
			b.log.Info("the event stream takes events again", "away", time.Since(since).Round(time.Second).String())
			since = time.Time{}
		case err != nil && since.IsZero() && ctx.Err() == nil:
			b.log.Error("the event stream cannot be written: events wait where they come from", "dir", b.cfg.Root, "err", err)
			since = time.Now()
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
