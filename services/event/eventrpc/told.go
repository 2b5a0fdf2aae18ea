package eventrpc

import (
	"sync"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/services/event"
)

const (
	// toldEvents is how many events are kept as they go over the wire.
	toldEvents = 256

	// toldBytes is how large one of them may be to be kept.
	toldBytes = 16 << 10
)

// told is the latest events as they go over the wire: made once, for all who
// subscribe.
type told struct {
	// mu guards ring, which has an event at its sequence modulo the length.
	mu   sync.Mutex
	ring [toldEvents]*wired
}

// A wired is an event as it goes over the wire. It implements [rpc.Message].
type wired struct {
	epoch    string
	sequence uint64
	once     sync.Once
	bytes    []byte
	err      error
}

// of returns e as it goes over the wire.
func (t *told) of(e event.Event) (*wired, error) {
	w := t.find(e)
	w.once.Do(func() { w.encode(e) })
	return w, w.err
}

// find returns the one there is, or a new one. One that is older than what is in
// its place is kept nowhere: only who is behind asks for it.
func (t *told) find(e event.Event) *wired {
	w := &wired{epoch: e.Epoch, sequence: e.Sequence}
	if e.Sequence == 0 || len(e.JSON)+len(e.Raw) > toldBytes {
		return w
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	place := &t.ring[e.Sequence%toldEvents]
	switch have := *place; {
	case have == nil || have.epoch != e.Epoch || have.sequence < e.Sequence:
		*place = w
	case have.sequence == e.Sequence:
		return have
	}
	return w
}

func (w *wired) encode(e event.Event) {
	env, err := toEnvelope(e)
	if err == nil {
		w.bytes, err = proto.Marshal(env)
	}
	w.err = err
}

// Marshal implements rpc.Message. The bytes are everybody's and not changed.
func (w *wired) Marshal() (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(w.bytes)}, nil
}

// Unmarshal implements rpc.Message. Nobody receives one.
func (w *wired) Unmarshal(b mem.BufferSlice) error {
	w.bytes = b.Materialize()
	return nil
}
