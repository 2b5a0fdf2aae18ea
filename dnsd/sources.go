package dnsd

import (
	"net/netip"
	"sync"
	"time"
)

// Limits of who asks.
const (
	sourcesMax  = 4096
	sourceRate  = 1000 // questions in a second, and at once
	slowMax     = 256  // questions that take time, of all
	sourceSlow  = 32   // and of one
	connsMax    = 128  // by TCP, of all
	sourceConns = 8    // and of one
)

// sources are those that have asked lately, and what each may still do.
type sources struct {
	// mu guards the fields below it. It is held across nothing.
	mu          sync.Mutex
	all         map[netip.Addr]*source
	slow, conns int
}

type source struct {
	left        float64
	at          time.Time
	slow, conns int
}

func newSources() sources { return sources{all: make(map[netip.Addr]*source)} }

// allow takes one question of a source. When there are too many sources, a new
// one waits until one of the others has been silent for a second.
func (s *sources) allow(a netip.Addr, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.getLocked(a, now)
	if o == nil {
		return false
	}
	o.left = min(sourceRate, o.left+now.Sub(o.at).Seconds()*sourceRate)
	o.at = now
	if o.left < 1 {
		return false
	}
	o.left--
	return true
}

func (s *sources) getLocked(a netip.Addr, now time.Time) *source {
	if o := s.all[a]; o != nil {
		return o
	}
	if len(s.all) >= sourcesMax {
		looked := 0
		for old, o := range s.all { // any few: looking at all of them for each would be the flood's aim
			if o.slow == 0 && o.conns == 0 && now.Sub(o.at) > time.Second {
				delete(s.all, old)
			}
			if looked++; looked == 16 {
				break
			}
		}
		if len(s.all) >= sourcesMax {
			return nil
		}
	}
	o := &source{left: sourceRate, at: now}
	s.all[a] = o
	return o
}

// enter takes a place among what takes time; leave gives it back.
func (s *sources) enter(a netip.Addr, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.getLocked(a, now)
	if o == nil || o.slow >= sourceSlow || s.slow >= slowMax {
		return false
	}
	o.slow++
	s.slow++
	return true
}

func (s *sources) leave(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[a].slow--
	s.slow--
}

// connect takes a place among connections; hangUp gives it back.
func (s *sources) connect(a netip.Addr, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.getLocked(a, now)
	if o == nil || o.conns >= sourceConns || s.conns >= connsMax {
		return false
	}
	o.conns++
	s.conns++
	return true
}

func (s *sources) hangUp(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[a].conns--
	s.conns--
}
