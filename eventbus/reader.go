package eventbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
)

// How many reads there are at once, of operators and of one plugin, so that
// nobody takes the place of another; and how many readers of each are remembered.
const (
	readsMax       = 2048
	readsPluginMax = 64
	readersMax     = 64
)

// readers count the reads that there are, and remember who reads under a name,
// to tell operators. Where a reader goes on it says itself.
type readers struct {
	// mu guards the fields below it, and readings and readers.
	mu    sync.Mutex
	by    map[string]int                // reads there are, by plugin, of which "" is the operators
	named map[string]map[string]*reader // by plugin, of which "" is the operators, and by name
}

// A reader is remembered.
type reader struct {
	at   event.Cursor
	seen time.Time
	gaps uint64
	now  *reading // if it reads
}

// A reading is one read of a reader, which is nil if it has no name.
type reading struct {
	in     *readers
	plugin string
	of     *reader
	stop   context.CancelCauseFunc
}

// enter begins a read. Its context ends when another of the same name begins,
// which takes its place. Too many are [errdefs.ErrUnavailable].
func (r *readers) enter(ctx context.Context, plugin, name string) (context.Context, *reading, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	of, n, limit := r.named[plugin][name], r.by[plugin], readsPluginMax
	if plugin == "" {
		limit = readsMax
	}
	again := of != nil && of.now != nil
	if n >= 2*limit || n >= limit && !again { // one that takes another's place may come before that is gone
		return nil, nil, fmt.Errorf("%d reads of %s are enough: %w", n, asker(plugin), errdefs.ErrUnavailable)
	}
	if again {
		of.now.stop(fmt.Errorf("%s reads as %s once more", asker(plugin), name))
	}
	if r.by == nil {
		r.by, r.named = make(map[string]int), make(map[string]map[string]*reader)
	}
	r.by[plugin]++
	ctx, stop := context.WithCancelCause(ctx)
	now := &reading{in: r, plugin: plugin, stop: stop}
	if name != "" {
		now.of = r.rememberLocked(plugin, name)
		now.of.now, now.of.seen = now, time.Now()
	}
	return ctx, now, nil
}

// rememberLocked returns the reader of a name. The one that was seen longest ago
// is forgotten if there are too many.
func (r *readers) rememberLocked(plugin, name string) *reader {
	own := r.named[plugin]
	if own == nil {
		own = make(map[string]*reader)
		r.named[plugin] = own
	}
	if own[name] != nil {
		return own[name]
	}
	if len(own) >= readersMax {
		oldest := ""
		for n, of := range own {
			if oldest == "" || of.seen.Before(own[oldest].seen) {
				oldest = n
			}
		}
		delete(own, oldest)
	}
	own[name] = new(reader)
	return own[name]
}

// reached says how far the reader was told.
func (n *reading) reached(at event.Cursor) {
	if n.of == nil {
		return
	}
	n.in.mu.Lock()
	defer n.in.mu.Unlock()
	if n.of.now == n {
		n.of.at, n.of.seen = at, time.Now()
	}
}

// leave ends the read.
func (n *reading) leave(err error) {
	n.stop(nil)
	n.in.mu.Lock()
	defer n.in.mu.Unlock()
	if n.in.by[n.plugin]--; n.in.by[n.plugin] == 0 {
		delete(n.in.by, n.plugin)
	}
	if n.of == nil || n.of.now != n {
		return
	}
	n.of.now, n.of.seen = nil, time.Now()
	if gap, ok := errors.AsType[*event.Gap](err); ok {
		n.of.gaps, n.of.at = n.of.gaps+1, gap.From
	}
}

// asker is what somebody who reads is called.
func asker(plugin string) string {
	if plugin == "" {
		return roleOperator
	}
	return plugin
}

// list returns whom is remembered, in order. Lag is counted up to last.
func (r *readers) list(last event.Cursor) []event.Reader {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []event.Reader
	for plugin, own := range r.named {
		for name, of := range own {
			told := event.Reader{Plugin: asker(plugin), Name: name, Cursor: of.at, Gaps: of.gaps, Seen: of.seen}
			if of.at.Epoch == last.Epoch && of.at.Sequence < last.Sequence {
				told.Lag = last.Sequence - of.at.Sequence
			}
			all = append(all, told)
		}
	}
	slices.SortFunc(all, func(a, b event.Reader) int {
		return cmp.Or(strings.Compare(a.Plugin, b.Plugin), strings.Compare(a.Name, b.Name))
	})
	return all
}
