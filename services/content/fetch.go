package content

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// stallTime is how long a fetch may bring nothing, or less than stallBytes,
	// before others go on without it.
	stallTime  = 5 * time.Second
	stallBytes = int64(stallTime/time.Second) * 64 << 10

	// A writer waits for those of its own namespace as long as they bring
	// something, up to ownTime. What another namespace does is not in its hands,
	// and may be meant to hold it up: for those it waits othersTime in all.
	ownTime    = 10 * time.Minute
	othersTime = 10 * time.Second
)

// Fetches are the writers of a store that bring the bytes of a digest which is
// known beforehand: of those who want the same at once one brings it, and the
// others wait. It is the rule of [Ingests].Writer, for whoever implements it. The
// zero value is ready to use.
type Fetches struct {
	// mu guards the fields below it, and those of every Fetch.
	mu sync.Mutex
	of map[digest.Digest][]*Fetch // whom others may wait for, the first first
}

// A Fetch is a writer's. Its methods may be called on nil, and do nothing then.
type Fetch struct {
	all       *Fetches
	namespace string
	options   WriterOptions
	began     time.Time
	refused   []string // namespaces whose blobs it may not have

	// Of the fetch that it watches: what it had at that time.
	watched *Fetch
	mark    int64
	since   time.Time

	// all.mu guards the fields below it.
	changed chan struct{} // closed when those who wait are to look again
	offset  int64
	moved   time.Time // when offset was another
	ending  bool
}

// Start returns when the caller, a writer in a namespace, is to bring the bytes
// that o expects, or once there says that it need not: the Fetch is nil then, and
// also with an error. There is asked first, and again whenever something may be
// different; its error is Start's. Lends says whether what another namespace
// commits is of use to this one. Neither is called with a lock. The caller ends
// the Fetch when its writer is over, and what it committed is there.
func (f *Fetches) Start(ctx context.Context, namespace string, o WriterOptions,
	lends func(namespace string) bool, there func() (bool, error)) (*Fetch, error) {
	me := &Fetch{all: f, namespace: namespace, options: o, began: time.Now()}
	for {
		first, changed := f.enter(me)
		if first != nil && first.namespace != namespace && !lends(first.namespace) {
			me.refused = append(me.refused, first.namespace)
			continue
		}
		// Whoever committed it before this was no longer waited for, and
		// whoever does so from now on closes changed.
		ok, err := there()
		if first == nil && (err != nil || ok) {
			me.End()
		}
		if err != nil || ok {
			return nil, err
		}
		if first == nil {
			return me, nil
		}
		if err := me.wait(ctx, first, changed); err != nil {
			return nil, err
		}
	}
}

// enter returns whom me is to wait for, and what is closed when that may be
// somebody else. If it is nobody, others may wait for me from now on.
func (f *Fetches) enter(me *Fetch) (first *Fetch, changed chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, now := me.options.Expected, time.Now()
	for _, other := range f.of[d] {
		if me.waitsFor(other, now) {
			return other, other.changed
		}
	}
	if f.of == nil {
		f.of = make(map[digest.Digest][]*Fetch)
	}
	me.changed, me.moved = make(chan struct{}), now
	f.of[d] = append(f.of[d], me)
	return nil, nil
}

// waitsFor says whether what other brings may be what me wants, and whether me
// has not waited long enough for the likes of it.
func (me *Fetch) waitsFor(other *Fetch, now time.Time) bool {
	if slices.Contains(me.refused, other.namespace) {
		return false
	}
	a, b := me.options.Total, other.options.Total
	return (a == 0 || b == 0 || a == b) && now.Before(me.waitsUntil(other))
}

func (me *Fetch) waitsUntil(other *Fetch) time.Time {
	if other.namespace == me.namespace {
		return me.began.Add(ownTime)
	}
	return me.began.Add(othersTime)
}

// wait returns when something has changed, or other is not worth to be waited
// for: it stalls, or me has waited long enough.
func (me *Fetch) wait(ctx context.Context, other *Fetch, changed chan struct{}) error {
	for {
		says, at := me.look(other, time.Now())
		switch says {
		case enough:
			return nil
		case stalled:
			me.all.drop(other)
			return nil
		}
		timer := time.NewTimer(time.Until(at))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-changed:
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// A verdict is what a look at another fetch says.
type verdict int

const (
	goesOn  verdict = iota
	stalled         // it brings nothing, or too little
	enough          // it was waited for long enough
)

// look says how another fetch does, and when to look again. A commit is in the
// hands of the store, and does not stall.
func (me *Fetch) look(other *Fetch, now time.Time) (verdict, time.Time) {
	me.all.mu.Lock()
	defer me.all.mu.Unlock()
	until := me.waitsUntil(other)
	if !now.Before(until) {
		return enough, now
	}
	if me.watched != other {
		me.watched, me.mark, me.since = other, other.offset, now
	}
	over := now.Sub(me.since) >= stallTime
	if !other.ending && (now.Sub(other.moved) >= stallTime || over && other.offset-me.mark < stallBytes) {
		return stalled, now
	}
	if over {
		me.mark, me.since = other.offset, now
	}
	at := me.since.Add(stallTime)
	if quiet := other.moved.Add(stallTime); !other.ending && quiet.Before(at) {
		at = quiet
	}
	if until.Before(at) {
		at = until
	}
	return goesOn, at
}

// drop takes a fetch from those whom others wait for. It may go on.
func (f *Fetches) drop(fetch *Fetch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := fetch.options.Expected
	i := slices.Index(f.of[d], fetch)
	if i < 0 {
		return
	}
	close(fetch.changed)
	if f.of[d] = slices.Delete(f.of[d], i, i+1); len(f.of[d]) == 0 {
		delete(f.of, d)
	}
}

// rouse has everybody look again who waits for a digest.
func (f *Fetches) rouse(d digest.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fetch := range f.of[d] {
		close(fetch.changed)
		fetch.changed = make(chan struct{})
	}
}

// At says how many bytes are there.
func (f *Fetch) At(offset int64) {
	if f == nil {
		return
	}
	f.all.mu.Lock()
	defer f.all.mu.Unlock()
	f.offset, f.moved = offset, time.Now()
}

// Ending says that the writer is about to commit.
func (f *Fetch) Ending() {
	if f == nil {
		return
	}
	f.all.mu.Lock()
	defer f.all.mu.Unlock()
	f.ending = true
}

// Landed says that the blob is there, whoever else is still waited for.
func (f *Fetch) Landed() {
	if f != nil {
		f.all.rouse(f.options.Expected)
	}
}

// End lets those who wait for it go on.
func (f *Fetch) End() {
	if f != nil {
		f.all.drop(f)
	}
}
