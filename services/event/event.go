// Package event is the contract of events: facts about objects, told in the
// order in which they became true.
//
// An event's payload is one of containerd's event messages, kept as protobuf
// JSON with the field names of the .proto files. The types in payload.go make
// such JSON without knowing protobuf. Payloads that arrive as protobuf of a
// type nobody here knows are passed on as they came.
package event

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/ident"
)

// An Event is a fact. Its identity is ID: two events of one ID are the same
// event, told twice.
type Event struct {
	ID        string    `json:"id"` // "<daemon>/<incarnation>/<sequence>", or made up by the bus for events from elsewhere
	Namespace string    `json:"namespace"`
	Topic     string    `json:"topic"` // "/tasks/exit"
	Time      time.Time `json:"time"`
	Subject   string    `json:"subject,omitempty"`     // the container, image, digest or key it is about
	Trace     string    `json:"traceparent,omitempty"` // W3C trace context of the call that caused it

	Type string `json:"type"`           // full name of the protobuf message
	JSON []byte `json:"json,omitempty"` // the payload as protobuf JSON, or
	Raw  []byte `json:"raw,omitempty"`  // as protobuf, if the type is not known

	// Sequence is the place in the bus's stream and Epoch which stream that
	// is: a stream rebuilt after a loss counts from 1 again. Both are set by
	// the bus.
	Sequence uint64 `json:"-"`
	Epoch    string `json:"-"`
}

// Check is [errdefs.ErrInvalidArgument] unless the namespace is an identifier
// and the topic is at least two of them, each after a slash.
func (e Event) Check() error {
	if err := ident.Check(e.Namespace); err != nil {
		return fmt.Errorf("event namespace: %w", err)
	}
	parts := strings.Split(e.Topic, "/")
	if len(parts) < 3 || parts[0] != "" {
		return fmt.Errorf("topic %q must start with '/' and have two components: %w", e.Topic, errdefs.ErrInvalidArgument)
	}
	for _, p := range parts[1:] {
		if err := ident.Check(p); err != nil {
			return fmt.Errorf("topic %q: %w", e.Topic, err)
		}
	}
	return nil
}

// A Publisher takes events in.
type Publisher interface {
	// Publish returns when the bus has the event durably. An event that fails
	// Check, or is too large for the bus, is [errdefs.ErrInvalidArgument]; one
	// that the bus has already is accepted and not told again. An event
	// without time is given the bus's, and one without id an id that follows
	// from what it says, its time included.
	Publish(ctx context.Context, e Event) error
}

// SubscribeOptions say what to tell.
type SubscribeOptions struct {
	// Filters are alternatives; none is all events. The fields are
	// "namespace", "topic" and "event.<field>".
	Filters []string

	// After asks for the kept events past a cursor first, and Since for those
	// that the bus took in at that time or later. Neither begins now; both is
	// [errdefs.ErrInvalidArgument].
	After *Cursor
	Since time.Time

	// Reached, if there is one, is told how far the bus has looked: before
	// Subscribe returns, the cursor past which it begins, and within the loop,
	// if the bus cares to say it, that of an event that did not match. So a
	// reader to whom nothing was told can go on where it was.
	Reached func(Cursor)
}

// Check is [errdefs.ErrInvalidArgument] if the subscription begins twice.
func (o SubscribeOptions) Check() error {
	if o.After != nil && !o.Since.IsZero() {
		return fmt.Errorf("subscribe after a cursor and since a time: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// A Subscriber is told of events.
type Subscriber interface {
	// Subscribe yields every event of every namespace that matches, in one
	// total order that is the same for every subscriber. It is in force when
	// Subscribe returns. A filter that does not parse is
	// [errdefs.ErrInvalidArgument]; a cursor of another epoch, or one whose
	// next event is not kept, is a [*Gap]. A time before the oldest kept event
	// begins with that. The sequence ends with an error, yielded last: ctx's
	// when ctx ends, and a [*Gap] when the caller is so late that its next
	// event is no longer kept. No event is dropped otherwise, however slow the
	// caller. It ranges over the sequence once; what the subscription holds is
	// let go when the loop or ctx ends.
	Subscribe(ctx context.Context, o SubscribeOptions) (iter.Seq2[Event, error], error)
}

// A Bus is both ends.
type Bus interface {
	Publisher
	Subscriber
}
