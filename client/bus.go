package client

import (
	"context"
	"iter"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventnats"
)

// A Bus is a connection to the node's NATS socket. A plugin that may do nothing
// but follow events needs no more of the suite.
type Bus struct{ nats *eventnats.Bus }

// DialBus returns a connection to the NATS socket at path, which is
// /run/gantry/nats.sock. It does not wait for it, and connects again for ever.
func DialBus(path string) (*Bus, error) {
	b, err := eventnats.Dial(path)
	if err != nil {
		return nil, err
	}
	return &Bus{b}, nil
}

// Close ends the connection, and with it what is subscribed to.
func (b *Bus) Close() { b.nats.Close() }

// Subscribe has s handle events until ctx ends. See [Subscription].
func (b *Bus) Subscribe(ctx context.Context, s Subscription) error {
	return s.follow(ctx, func(ctx context.Context, o event.SubscribeOptions) (iter.Seq2[event.Event, error], error) {
		return b.nats.SubscribeTo(ctx, eventnats.Read{Name: s.Name, Subjects: s.Subjects, Options: o})
	})
}

// Subscribe is [Bus.Subscribe] by the public socket, for who has it anyway. It
// knows no names and no subjects there: the bus does not list it, and Subjects
// are matched here.
func (c *Client) Subscribe(ctx context.Context, s Subscription) error {
	return s.follow(ctx, c.Events.Subscribe)
}
