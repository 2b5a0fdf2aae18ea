package eventnats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gantryd/gantry/services/event"
)

// fetchMax is how many bytes of messages are on their way to the bus: more than
// one can have, and less than the server lets wait. The library makes place for
// fetchMessages at once.
const (
	fetchMax      = 5 << 18
	fetchMessages = 1024
)

// What is in this file is for the bus itself: nobody else may use the stream.

// JetStream is what the stream is made with.
func (b *Bus) JetStream() jetstream.JetStream { return b.js }

// Begin returns the cursor past which a subscription begins.
func (b *Bus) Begin(ctx context.Context, o event.SubscribeOptions) (event.Cursor, error) {
	if err := o.Check(); err != nil {
		return event.Cursor{}, err
	}
	inner, cancel := b.call(ctx)
	defer cancel()
	stream, err := b.js.Stream(inner, Stream)
	if err := kind(ctx, inner, err); err != nil {
		return event.Cursor{}, fmt.Errorf("stream of events: %w", err)
	}
	info := stream.CachedInfo()
	at := event.Cursor{Epoch: info.Config.Metadata[Epoch], Sequence: info.State.LastSeq}
	oldest := event.Cursor{Epoch: at.Epoch, Sequence: max(info.State.FirstSeq, 1) - 1}
	switch {
	case o.After != nil && (o.After.Epoch != at.Epoch || o.After.Sequence > at.Sequence || o.After.Sequence < oldest.Sequence):
		return event.Cursor{}, &event.Gap{From: *o.After, To: oldest}
	case o.After != nil:
		return *o.After, nil
	case !o.Since.IsZero():
		first, err := b.since(inner, o.Since)
		if err := kind(ctx, inner, err); err != nil {
			return event.Cursor{}, fmt.Errorf("stream of events: %w", err)
		}
		if first > 0 {
			at.Sequence = first - 1
		}
	}
	return at, nil
}

// A get asks for messages of the stream. The server answers with each of them,
// and with one without a body that says what it was.
type get struct {
	Sequence uint64    `json:"seq,omitempty"`
	Since    time.Time `json:"start_time,omitzero"`
	Batch    int       `json:"batch"`
	Bytes    int       `json:"max_bytes,omitempty"`
}

// getSubject is where they are asked for.
const getSubject = "$JS.API.DIRECT.GET." + Stream

// since returns the sequence of the first message that was taken in at a time
// or later, or 0 if there is none.
func (b *Bus) since(ctx context.Context, t time.Time) (uint64, error) {
	request, err := json.Marshal(get{Since: t.UTC(), Batch: 1})
	if err != nil {
		return 0, err
	}
	m, err := b.nc.RequestWithContext(ctx, getSubject, request)
	if err != nil {
		return 0, err
	}
	switch status := m.Header.Get("Status"); status {
	case "":
		return strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
	case "404":
		return 0, nil
	default:
		return 0, fmt.Errorf("the first event since %v: %s %s", t, status, m.Header.Get("Description"))
	}
}

// Some returns up to n messages past a cursor, and no more when they have so
// many bytes, as Read does. None is that there are none.
func (b *Bus) Some(ctx context.Context, after event.Cursor, n, bytes int) ([]event.Event, error) {
	inner, cancel := b.call(ctx)
	defer cancel()
	events, err := b.some(inner, after, n, bytes)
	if err != nil {
		return nil, fmt.Errorf("stream of events: %w", kindOfNext(ctx, inner, err))
	}
	return events, nil
}

func (b *Bus) some(ctx context.Context, after event.Cursor, n, bytes int) (events []event.Event, err error) {
	request, err := json.Marshal(get{Sequence: after.Sequence + 1, Batch: n, Bytes: bytes})
	if err != nil {
		return nil, err
	}
	inbox := b.nc.NewInbox()
	answers, err := b.nc.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answers.Unsubscribe() }()
	if err := b.nc.PublishRequest(getSubject, inbox, request); err != nil {
		return nil, err
	}
	for {
		m, err := answers.NextMsgWithContext(ctx)
		if err != nil {
			return nil, err
		}
		switch status := m.Header.Get("Status"); status {
		case "":
		case "204", "404": // the end of them, and none
			return events, nil
		default:
			return nil, fmt.Errorf("events after %s: %s %s", after, status, m.Header.Get("Description"))
		}
		sequence, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
		if err != nil {
			return nil, err
		}
		e, err := place(after, sequence, m.Header.Get("Nats-Subject"), m.Header, m.Data)
		if err != nil && len(events) > 0 {
			return events, nil // and the gap next time
		}
		if err != nil {
			return nil, err
		}
		events, after.Sequence = append(events, e), sequence
	}
}

// Read yields every message of the stream past a cursor, each with its
// place. One that is not an event has no id. The sequence ends with an error,
// yielded last, as a subscription's does.
func (b *Bus) Read(ctx context.Context, after event.Cursor) iter.Seq2[event.Event, error] {
	return func(yield func(event.Event, error) bool) {
		inner, cancel := b.bound(ctx)
		defer cancel()
		messages, err := b.messages(inner, after.Sequence+1)
		if err != nil {
			yield(event.Event{}, fmt.Errorf("stream of events: %w", kind(ctx, inner, err)))
			return
		}
		defer messages.Stop()
		for ; ; after.Sequence++ {
			e, err := next(inner, messages, after)
			if err != nil {
				yield(event.Event{}, kindOfNext(ctx, inner, err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (b *Bus) messages(ctx context.Context, from uint64) (jetstream.MessagesContext, error) {
	inner, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	c, err := b.js.OrderedConsumer(inner, Stream, jetstream.OrderedConsumerConfig{
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       from,
		MaxResetAttempts:  1,
		InactiveThreshold: 30 * time.Second,
	})
	if err != nil {
		return nil, err
	}
	return c.Messages(jetstream.PullMaxMessagesWithBytesLimit(fetchMessages, fetchMax))
}

// next returns the message behind a cursor. The stream has no holes: one that
// is missing was removed for its age, or the stream is another.
func next(ctx context.Context, messages jetstream.MessagesContext, after event.Cursor) (event.Event, error) {
	m, err := messages.Next(jetstream.NextContext(ctx))
	if err != nil {
		return event.Event{}, err
	}
	meta, err := m.Metadata()
	if err != nil {
		return event.Event{}, err
	}
	return place(after, meta.Sequence.Stream, m.Subject(), m.Headers(), m.Data())
}

// place returns the event of a message at its place, which is the one behind a
// cursor unless there is a gap.
func place(after event.Cursor, sequence uint64, subject string, h nats.Header, data []byte) (event.Event, error) {
	if sequence != after.Sequence+1 {
		return event.Event{}, &event.Gap{From: after, To: event.Cursor{Epoch: after.Epoch, Sequence: sequence - 1}}
	}
	e, err := fromMessage(subject, h, data)
	if err != nil {
		e = event.Event{}
	}
	e.Epoch, e.Sequence = after.Epoch, sequence
	return e, nil
}

func kindOfNext(outer, inner context.Context, err error) error {
	if outer.Err() == nil && errors.Is(err, errdefs.ErrOutOfRange) {
		return err
	}
	return kind(outer, inner, err)
}
