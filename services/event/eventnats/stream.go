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
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gantryd/gantry/services/event"
)

// fetchMax is how many bytes of messages are on their way to a reader.
const fetchMax = 4 << 20

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

// since returns the sequence of the first message that was taken in at a time
// or later, or 0 if there is none.
func (b *Bus) since(ctx context.Context, t time.Time) (uint64, error) {
	request, err := json.Marshal(struct {
		Batch     int       `json:"batch"`
		StartTime time.Time `json:"start_time"`
	}{1, t.UTC()})
	if err != nil {
		return 0, err
	}
	m, err := b.nc.RequestWithContext(ctx, "$JS.API.DIRECT.GET."+Stream, request)
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
	return c.Messages(jetstream.PullMaxBytes(fetchMax))
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
	at := event.Cursor{Epoch: after.Epoch, Sequence: meta.Sequence.Stream}
	if at.Sequence != after.Sequence+1 {
		return event.Event{}, &event.Gap{From: after, To: event.Cursor{Epoch: at.Epoch, Sequence: at.Sequence - 1}}
	}
	e, err := fromMessage(m.Subject(), m.Headers(), m.Data())
	if err != nil {
		e = event.Event{}
	}
	e.Epoch, e.Sequence = at.Epoch, at.Sequence
	return e, nil
}

func kindOfNext(outer, inner context.Context, err error) error {
	if outer.Err() == nil && errors.Is(err, errdefs.ErrOutOfRange) {
		return err
	}
	return kind(outer, inner, err)
}
