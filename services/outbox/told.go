package outbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
)

// Told returns when the bus has every event that is in the box now, or when ctx
// ends. An event from somewhere else that is told after it comes after them.
func (b *Box) Told(ctx context.Context) error {
	until := uint64(1)
	err := b.db.View(func(tx *kv.Tx) error { return tx.GetJSON(nextKey, &until) })
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return fmt.Errorf("outbox: %w", err)
	}
	// A bus that is there has taken them within milliseconds.
	for pause := time.Millisecond; ; pause = min(2*pause, retryMax) {
		first, err := b.first()
		if err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
		if first == nil || bytes.Compare(first, rowKey(until)) >= 0 {
			return nil
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// first returns the key of the first row that the bus does not have.
func (b *Box) first() (key []byte, err error) {
	from := b.pastTaken()
	err = b.db.View(func(tx *kv.Tx) error {
		for key = range tx.Scan(kv.Key("outbox", ""), from) {
			break
		}
		return nil
	})
	return key, err
}
