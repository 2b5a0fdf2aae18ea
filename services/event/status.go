package event

import (
	"context"
	"time"
)

// A Status is how a bus is at one moment.
type Status struct {
	Stream  Stream
	Readers []Reader // in order of plugin and name
	Gates   []Gate   // in order of their names
	Peers   []Peer   // in order of their names

	Connections, ConnectionsMax int // on the bus's NATS socket
}

// A Stream is what a bus keeps.
type Stream struct {
	Epoch       string
	First, Last uint64 // sequences; of a stream that keeps nothing, First is Last+1
	Bytes       int64
	BytesMax    int64         // the oldest events go when there are more
	AgeMax      time.Duration // and when they are older
	Oldest      time.Time     // when the first was taken in; zero if there is none
}

// Kept is how many events there are.
func (s Stream) Kept() uint64 { return s.Last + 1 - s.First }

// A Reader is one whose cursor the bus was told: it comes back with it for what
// happened meanwhile.
type Reader struct {
	Plugin string // who reads
	Name   string // of the subscription, as the reader calls it
	Cursor Cursor // past which it reads next
	Lag    uint64 // events that are kept and that it has not been told
	Gaps   uint64 // how often what it wanted was no longer kept
	Seen   time.Time
}

// A Gate is a name by which a plugin answers who wants to start a container.
type Gate struct {
	Name    string
	Plugins []string // who answers, or may
	Present bool     // somebody answers now
}

// A Peer is everybody who is connected in one role, or as one plugin.
type Peer struct {
	Name          string
	Connections   int
	Subscriptions int
	Pending       int64 // bytes that wait for somebody who does not read
}

// A Reporter says how a bus is.
type Reporter interface {
	Status(ctx context.Context) (Status, error)
}
