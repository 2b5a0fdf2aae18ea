package snapshotd

import (
	"context"
	"fmt"
	"iter"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/unpack"
)

// Unpacking returns the service that unpacks images.
func (s *Store) Unpacking() unpack.Services { return unpackers{s} }

type unpackers struct{ s *Store }

var (
	_ unpack.Services = unpackers{}
	_ unpack.Service  = unpacker{}
)

// In implements unpack.Services.
func (u unpackers) In(scope namespace.Scope, snapshotter string) (unpack.Service, error) {
	d, err := u.s.driver(snapshotter)
	if err != nil {
		return nil, err
	}
	n := snapshots{s: u.s, scope: scope, d: d, shelf: shelf{snapshotter, scope.Name}}
	if e, ok := d.(*external); ok {
		return inSeries{outside{n, e}}, nil
	}
	return unpacker{n}, nil
}

type unpacker struct{ snapshots }

// crowdMax is how many layers may be unpacked, or wait for that, in all calls: each
// is a goroutine or two, and some ask the content store again and again.
const crowdMax = 20_000

// A crowd is the layers of all calls.
type crowd struct{ n atomic.Int64 }

// enter is [errdefs.ErrUnavailable] where there are too many already.
func (c *crowd) enter(n int) (leave func(), err error) {
	if c.n.Add(int64(n)) > crowdMax {
		c.n.Add(-int64(n))
		return nil, fmt.Errorf("more than %d layers would be unpacked at once: %w", crowdMax, errdefs.ErrUnavailable)
	}
	return func() { c.n.Add(-int64(n)) }, nil
}

// tellTime is how often a caller is told how far it is.
const tellTime = 100 * time.Millisecond

// Unpack implements unpack.Service. What a caller is told is looked up from time
// to time, so that one who is slow slows down nobody but himself.
func (u unpacker) Unpack(ctx context.Context, layers []unpack.Layer) iter.Seq2[unpack.Progress, error] {
	return func(yield func(unpack.Progress, error) bool) {
		leave, err := u.s.crowd.enter(len(layers))
		if err != nil {
			yield(unpack.Progress{}, err)
			return
		}
		defer leave()
		c, err := u.begin(ctx, layers)
		if err != nil {
			yield(unpack.Progress{}, err)
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			err = c.run(ctx)
		}()
		defer func() {
			cancel()
			<-done
		}()
		r := report{c: c, told: make([]unpack.Progress, len(c.layers)), yield: yield}
		tick := time.NewTicker(tellTime)
		defer tick.Stop()
		for more := r.tell(); more; {
			select {
			case <-tick.C:
				more = r.tell()
			case <-done:
				if r.tell() && err != nil {
					yield(unpack.Progress{}, err)
				}
				return
			}
		}
	}
}

// A report is what a caller was told.
type report struct {
	c     *unpacking
	told  []unpack.Progress
	yield func(unpack.Progress, error) bool
}

// tell tells what is new. It is false if the caller has enough.
func (r *report) tell() bool {
	for i, l := range r.c.layers {
		if p := l.progress(); p != r.told[i] {
			if r.told[i] = p; !r.yield(p, nil) {
				return false
			}
		}
	}
	return true
}
