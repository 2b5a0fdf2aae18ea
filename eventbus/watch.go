package eventbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/event/eventnats"
)

const (
	watchTime = 2 * time.Second
	testTime  = 10 * time.Second // for one self-test
	silentMax = 3                // tests without an answer, until it is not the disk that is slow

	// freeMin is less than a store that failed for want of space will have
	// when space was made.
	freeMin = 32 << 20
)

// Watch tests the store of the stream now and then and ends with an error when
// it is broken: it stays so until the process is a new one. It waits for what a
// new one needs, so that a disk that is full is not a reason to restart again
// and again, and what is kept can be read meanwhile.
func (b *Bus) Watch(ctx context.Context) error {
	said, silent := false, 0
	for {
		if err := pause(ctx, watchTime); err != nil {
			return err
		}
		last, err := b.selfTest(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			silent = 0
			if last > b.mark.Sequence {
				b.mark.Sequence = last
				b.saveMark()
			}
			continue
		}
		if errors.Is(err, context.DeadlineExceeded) {
			if silent++; silent < silentMax {
				continue
			}
		}
		if !said {
			said = true
			b.log.Error("the event stream cannot be written", "dir", b.cfg.Root, "err", err)
		}
		if b.writable() == nil {
			return fmt.Errorf("event stream %s: %v: %w", b.cfg.Root, err, errdefs.ErrInternal)
		}
	}
}

// neverTold is a subject on which there is no event.
const neverTold = "gantry.v1.none"

// selfTest returns the stream's last sequence, or what is wrong with its store.
//
// The server knows of a write that failed in two places: the stream's own, which
// its health tells, and the store's, which is found out by asking it to change
// something. It is asked to remove the events of a subject that has none.
func (b *Bus) selfTest(ctx context.Context) (last uint64, err error) {
	if h := b.server.Healthz(&server.HealthzOptions{}); h.Error != "" {
		return 0, errors.New(h.Error)
	}
	ctx, cancel := context.WithTimeout(ctx, testTime)
	defer cancel()
	stream, err := b.stream.JetStream().Stream(ctx, eventnats.Stream)
	if err != nil {
		return 0, err
	}
	info := stream.CachedInfo()
	if got := info.Config.Metadata[eventnats.Epoch]; got != b.epoch {
		return 0, fmt.Errorf("the stream is %s and was %s", got, b.epoch)
	}
	return info.State.LastSeq, stream.Purge(ctx, jetstream.WithPurgeSubject(neverTold))
}

func free(dir string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return freeMin // then space is not what it waits for
	}
	return int64(st.Bavail) * st.Bsize
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
