package contentrpc

import "sync"

// What a client does not read waits in this process. gRPC takes messages until
// it has window bytes of a stream that are not sent, and one more, so that a
// client that stopped reading holds little where messages are small. Large ones
// are for streams that are being read, and for so many of them at once: a stream
// begins and ends with more than a window of small ones, between which it is
// known that what came before has left.
const (
	large    = 1 << 20
	largeMax = 16       // streams
	small    = 31 << 10 // with more than 32 KiB gRPC holds a megabyte
	window   = 64 << 10
)

// A ration is what the streams of a server share.
type ration struct {
	turns chan struct{}
	large pool
	small pool
}

func newRation() *ration {
	return &ration{turns: make(chan struct{}, largeMax), large: pool{size: large}, small: pool{size: small}}
}

// A pool is a [mem.BufferPool] of buffers of one size.
type pool struct {
	size int
	free sync.Pool // of *[]byte
}

// Get implements [mem.BufferPool], for as many bytes as it has.
func (p *pool) Get(length int) *[]byte {
	b, ok := p.free.Get().(*[]byte)
	if !ok {
		made := make([]byte, p.size)
		b = &made
	}
	*b = (*b)[:min(length, p.size)]
	return b
}

// Put implements [mem.BufferPool].
func (p *pool) Put(b *[]byte) { p.free.Put(b) }

// A share is one stream's.
type share struct {
	of   *ration
	turn bool
}

func (r *ration) share() *share { return &share{of: r} }

// next is the pool of the next message of a stream that has sent some bytes and
// has others left, and how many of them it takes.
func (s *share) next(sent, left int64) (*pool, int) {
	p := &s.of.small
	if sent > window && left > window+large && s.mayLarge() {
		p = &s.of.large
	}
	return p, int(min(left, int64(p.size)))
}

func (s *share) mayLarge() bool {
	if s.turn {
		return true
	}
	select {
	case s.of.turns <- struct{}{}:
		s.turn = true
	default:
	}
	return s.turn
}

// end is called when the stream is over.
func (s *share) end() {
	if s.turn {
		<-s.of.turns
	}
}
