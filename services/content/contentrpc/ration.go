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
	large sync.Pool // of *[]byte
	small sync.Pool // of *[]byte
}

func newRation() *ration {
	return &ration{
		turns: make(chan struct{}, largeMax),
		large: sync.Pool{New: func() any { b := make([]byte, large); return &b }},
		small: sync.Pool{New: func() any { b := make([]byte, small); return &b }},
	}
}

// A share is one stream's.
type share struct {
	of     *ration
	turn   bool
	pool   *sync.Pool // of buffer
	buffer *[]byte
}

func (r *ration) share() *share { return &share{of: r} }

// next is a buffer for the next message of a stream that has sent some bytes and
// has others left. The one before is not used any more.
func (s *share) next(sent, left int64) []byte {
	pool := &s.of.small
	if sent > window && left > window+large && s.mayLarge() {
		pool = &s.of.large
	}
	if s.pool != pool {
		s.put()
		s.pool, s.buffer = pool, pool.Get().(*[]byte)
	}
	b := *s.buffer
	return b[:min(left, int64(len(b)))]
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

func (s *share) put() {
	if s.pool != nil {
		s.pool.Put(s.buffer)
		s.pool, s.buffer = nil, nil
	}
}

// end is called when the stream is over.
func (s *share) end() {
	s.put()
	if s.turn {
		<-s.of.turns
	}
}
