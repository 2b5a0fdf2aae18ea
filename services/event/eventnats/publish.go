package eventnats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/services/event"
)

// An event is published by a request on Publishing + "<namespace>.<noun>.<verb>",
// with the headers and the body that it is told with, and answered when it is on
// the disk. Where it is told, nobody publishes but the bus.
const Publishing = "gantry.bus.v1.publish."

// A taken is the answer: that the event is on the disk, or why it is not.
type taken struct {
	Error string `json:"error,omitempty"`
	Kind  string `json:"kind,omitempty"`
}

// refusals are the kinds of errors that a publisher decides by.
var refusals = []struct {
	word string
	kind error
}{
	{"invalid", errdefs.ErrInvalidArgument},
	{"full", errdefs.ErrResourceExhausted},
}

// What is given to the store at once.
const (
	takingMax   = 256
	takingBytes = 1 << 20
)

// Publish implements event.Publisher.
func (b *Bus) Publish(ctx context.Context, e event.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := e.Check(); err != nil {
		return err
	}
	e = e.Stamp(time.Now(), "eventbus")
	inner, cancel := b.call(ctx)
	defer cancel()
	m := toMessage(e, b.node)
	m.Subject = Publishing + strings.TrimPrefix(m.Subject, prefix)
	reply, err := b.nc.RequestMsgWithContext(inner, m)
	if err := kind(ctx, inner, err); err != nil {
		return fmt.Errorf("publish %s: %w", e.Topic, err)
	}
	var a taken
	if err := json.Unmarshal(reply.Data, &a); err != nil {
		return fmt.Errorf("publish %s: answer: %v: %w", e.Topic, err, errdefs.ErrUnavailable)
	}
	if a.Error == "" {
		return nil
	}
	for _, s := range refusals {
		if a.Kind == s.word {
			return fmt.Errorf("publish %s: %s: %w", e.Topic, a.Error, s.kind)
		}
	}
	return fmt.Errorf("publish %s: %s: %w", e.Topic, a.Error, errdefs.ErrUnavailable)
}

// TakeIn begins to answer those who publish, for the bus itself. The function
// that it returns does it until ctx ends: it gives their events to store in the
// order in which they come, with those that came meanwhile; store returns when
// they are on the disk.
func (b *Bus) TakeIn(ctx context.Context, store func(events ...event.Event) []error) (serve func(), err error) {
	came := make(chan *nats.Msg, takingMax)
	sub, err := b.nc.Subscribe(Publishing+">", func(m *nats.Msg) {
		select {
		case came <- m:
		case <-ctx.Done():
		}
	})
	if err != nil {
		return nil, fmt.Errorf("publishers: %w", err)
	}
	inner, cancel := b.call(ctx)
	defer cancel()
	if err := kind(ctx, inner, b.nc.FlushWithContext(inner)); err != nil {
		return nil, fmt.Errorf("publishers: %w", errors.Join(err, sub.Unsubscribe()))
	}
	return func() {
		defer func() { _ = sub.Unsubscribe() }()
		for {
			select {
			case m := <-came:
				takeIn(behind(m, came), store)
			case <-ctx.Done():
				return
			}
		}
	}, nil
}

// behind returns m and what is there already behind it.
func behind(m *nats.Msg, came <-chan *nats.Msg) []*nats.Msg {
	all := []*nats.Msg{m}
	for bytes := len(m.Data); len(all) < takingMax && bytes < takingBytes; bytes += len(m.Data) {
		select {
		case m = <-came:
			all = append(all, m)
		default:
			return all
		}
	}
	return all
}

// takeIn stores what messages say and answers each.
func takeIn(messages []*nats.Msg, store func(events ...event.Event) []error) {
	var events []event.Event
	var from []*nats.Msg
	for _, m := range messages {
		e, err := fromMessage(prefix+strings.TrimPrefix(m.Subject, Publishing), m.Header, m.Data)
		if err != nil {
			respond(m, fmt.Errorf("%v: %w", err, errdefs.ErrInvalidArgument))
			continue
		}
		events, from = append(events, e), append(from, m)
	}
	if len(events) == 0 {
		return
	}
	for i, err := range store(events...) {
		respond(from[i], err)
	}
}

// respond answers a publisher. The reply subject of a request is not checked by
// the server.
func respond(m *nats.Msg, err error) {
	if !isInbox(m.Reply) {
		return
	}
	var a taken
	if err != nil {
		a.Error = err.Error()
		for _, s := range refusals {
			if errors.Is(err, s.kind) {
				a.Error, a.Kind = strings.TrimSuffix(a.Error, ": "+s.kind.Error()), s.word
				break
			}
		}
	}
	b, _ := json.Marshal(a) // two texts
	_ = m.Respond(b)        // a publisher without an answer asks again
}

// Tell tells of an event whoever listens just now, for the bus itself.
func (b *Bus) Tell(e event.Event) error { return b.nc.PublishMsg(toMessage(e, b.node)) }
