package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/kv"
)

// Waiting is what the bus has not taken yet.
type Waiting struct {
	Depth  int       // events
	Oldest time.Time // of the first; zero if there is none
	Away   time.Time // since when the bus takes none; zero if it does
}

// Waiting costs the same however many events wait: their sequences have no
// holes.
func (b *Box) Waiting() (Waiting, error) {
	var w Waiting
	from := b.pastTaken()
	b.mu.Lock()
	w.Away = b.away
	b.mu.Unlock()
	err := b.db.View(func(tx *kv.Tx) error {
		for key, value := range tx.Scan(kv.Key("outbox", ""), from) {
			parts := kv.Parts(key)
			first, err := strconv.ParseUint(parts[len(parts)-1], 16, 64)
			if err != nil {
				return err
			}
			var next uint64
			if err := tx.GetJSON(nextKey, &next); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
				return err
			}
			var e event.Event
			_ = json.Unmarshal(value, &e) // one that is damaged waits too
			w.Depth, w.Oldest = int(next-first), e.Time
			return nil
		}
		return nil
	})
	if err != nil {
		return Waiting{}, fmt.Errorf("outbox: %w", err)
	}
	return w, nil
}

// pastTaken returns where the rows begin that the bus does not have.
func (b *Box) pastTaken() (from []byte) {
	now := b.db.Incarnation()
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.taken); n > 0 && b.taken[n-1].incarnation == now {
		from = append(slices.Clone(b.taken[n-1].key), 0)
	}
	return from
}

// isAway notes since when the bus takes no events.
func (b *Box) isAway(since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = since
}
