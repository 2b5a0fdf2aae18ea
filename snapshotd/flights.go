package snapshotd

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/gantryd/gantry/services/unpack"
)

// flights are the snapshots that are being unpacked, each by one call at a time.
type flights struct {
	mu sync.Mutex
	m  map[flightKey]*flight // guarded by mu
}

type flightKey struct {
	shelf
	name string
}

// A flight is a layer on its way to being a snapshot.
type flight struct {
	layer unpack.Layer
	phase atomic.Value // unpack.Phase
	read  atomic.Int64 // packed bytes

	done chan struct{} // closed when it is over
	err  error         // then: why there is no snapshot
}

func newFlight(l unpack.Layer, p unpack.Phase) *flight {
	f := &flight{layer: l, done: make(chan struct{})}
	f.phase.Store(p)
	return f
}

// take returns the flight to a snapshot: a new one, which the caller ends, or
// that of somebody else.
func (f *flights) take(key flightKey, l unpack.Layer) (_ *flight, mine bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if other, ok := f.m[key]; ok {
		return other, false
	}
	own := newFlight(l, unpack.Waiting)
	if f.m == nil {
		f.m = make(map[flightKey]*flight)
	}
	f.m[key] = own
	return own, true
}

// end ends a flight that the caller took.
func (f *flights) end(key flightKey, own *flight, err error) {
	f.mu.Lock()
	delete(f.m, key)
	f.mu.Unlock()
	own.err = err
	close(own.done)
}

// errGivenUp is the error of a flight whose call ended for another reason than
// the layer.
var errGivenUp = errors.New("who unpacked the layer has given it up")

// concerns says whether a flight that failed says that l would fail too.
func (f *flight) concerns(l unpack.Layer) bool {
	if errors.Is(f.err, errGivenUp) || errors.Is(f.err, context.Canceled) || errors.Is(f.err, context.DeadlineExceeded) {
		return false
	}
	return f.layer.Digest == l.Digest && f.layer.Size == l.Size && f.layer.MediaType == l.MediaType && f.layer.Ingest == l.Ingest
}
