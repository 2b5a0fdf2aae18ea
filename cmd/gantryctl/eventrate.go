package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// rateTime is the time between two tellings of the rate.
const rateTime = time.Second

// A rate tells how many events come, in a line that it rewrites. A nil one is
// silent.
type rate struct {
	w     io.Writer
	width func() int

	// mu guards the fields below it.
	mu         sync.Mutex
	all, fresh int  // events, and those since the last line
	shown      bool // there is a line to be cleared
}

func newRate(w io.Writer, width func() int) *rate { return &rate{w: w, width: width} }

// add counts an event. The line goes, for the event to take its place.
func (r *rate) add() {
	if r == nil {
		return
	}
	r.clear()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all++
	r.fresh++
}

// clear takes the line away.
func (r *rate) clear() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.shown {
		fmt.Fprint(r.w, clearLine)
		r.shown = false
	}
}

// tell writes the line.
func (r *rate) tell(passed time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	line := fmt.Sprintf("%d events, %.0f/s", r.all, float64(r.fresh)/passed.Seconds())
	fmt.Fprint(r.w, clearLine+cut(line, r.width()-1))
	r.fresh, r.shown = 0, true
}

// run tells the rate until stop is called.
func (r *rate) run() (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(rateTime)
		defer t.Stop()
		for last := time.Now(); ; {
			select {
			case now := <-t.C:
				r.tell(now.Sub(last))
				last = now
			case <-done:
				r.clear()
				return
			}
		}
	})
	return func() { close(done); wg.Wait() }
}
