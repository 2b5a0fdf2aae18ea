package eventbus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventnats"
)

const (
	// placeName is the file, below the root, with the cursor of the last
	// event that the fleet has.
	placeName = "leaf.cursor"

	// The place is saved after placeEvents, or the first one after placeTime.
	// What comes after it is told again after a crash, under the same ids.
	placeEvents = 64
	placeTime   = time.Second

	ackTime   = 5 * time.Second
	retryTime = time.Second
)

// A forwarder tells the fleet. There is one, and it tells one event at a time:
// what the fleet does not acknowledge would otherwise come after the next.
type forwarder struct {
	bus  *Bus
	node string
	js   jetstream.JetStream

	path    string
	place   *event.Cursor // of the last event that the fleet has, if there is one
	unsaved int
	saved   time.Time

	trouble string // what was said last
}

// Forward tells the fleet of every event, at least once and in order, until ctx
// ends. It is a work of the daemon where the config has a leaf.
func (b *Bus) Forward(ctx context.Context) error {
	node, err := b.cfg.Leaf.node()
	if err != nil {
		return fmt.Errorf("fleet: %w", err)
	}
	own := b.roles.byName[roleLeaf]
	nc, err := nats.Connect("", nats.InProcessServer(b.server), nats.UserInfo(own.name, own.secret),
		nats.Name("forwarder"), nats.MaxReconnects(-1), nats.ReconnectBufSize(-1))
	if err != nil {
		return fmt.Errorf("fleet: %w", err)
	}
	defer nc.Close()
	f := &forwarder{bus: b, node: node, path: filepath.Join(b.cfg.Root, placeName)}
	if f.js, err = jetstream.New(nc); err != nil {
		return fmt.Errorf("fleet: %w", err)
	}
	if err := f.load(); err != nil {
		return fmt.Errorf("fleet: %w", err)
	}
	for {
		err := f.forward(ctx)
		if lost, ok := errors.AsType[*event.Gap](err); ok {
			err = f.gap(ctx, lost)
		}
		if saveErr := f.save(); err == nil {
			err = saveErr
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f.say(err)
		if err == nil {
			continue
		}
		if err := pause(ctx, retryTime); err != nil {
			return err
		}
	}
}

// forward tells the fleet what it does not have, until something is wrong.
func (f *forwarder) forward(ctx context.Context) (err error) {
	// Operators see how far it is among those who read.
	ctx, now, err := f.bus.readers.enter(ctx, nameFleet, f.node)
	if err != nil {
		return err
	}
	defer func() { now.leave(err) }()
	if f.place != nil {
		now.reached(*f.place)
	}
	o := event.SubscribeOptions{After: f.place}
	if f.place == nil {
		o.Since = time.Unix(0, 0) // all there is
	}
	events, err := f.bus.Subscribe(ctx, o)
	if err != nil {
		return err
	}
	for e, err := range events {
		if err != nil {
			return err
		}
		if err := f.tell(ctx, eventnats.ToFleet(e, f.node)); err != nil {
			return err
		}
		f.place = &event.Cursor{Epoch: e.Epoch, Sequence: e.Sequence}
		now.reached(*f.place)
		f.unsaved++
		if f.unsaved >= placeEvents || time.Since(f.saved) >= placeTime {
			if err := f.save(); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// gap tells the fleet of events that are lost, and goes on behind them.
func (f *forwarder) gap(ctx context.Context, lost *event.Gap) error {
	f.bus.log.Error("events are lost to the fleet", "from", lost.From, "to", lost.To)
	m, err := eventnats.GapToFleet(lost, f.node)
	if err != nil {
		return err
	}
	if err := f.tell(ctx, m); err != nil {
		return err
	}
	f.place = &lost.To
	f.unsaved++
	return nil
}

// tell returns when the fleet has the message in a stream. It tries until ctx
// ends.
func (f *forwarder) tell(ctx context.Context, m *nats.Msg) error {
	for {
		inner, cancel := context.WithTimeout(ctx, ackTime)
		_, err := f.js.PublishMsg(inner, m, jetstream.WithRetryAttempts(0))
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if eventnats.TooLarge(err) && len(m.Data) > 0 {
			eventnats.OmitBody(m)
			continue
		}
		f.say(err)
		if err == nil {
			return nil
		}
		if err := pause(ctx, retryTime); err != nil {
			return err
		}
	}
}

// say logs what is wrong, or that nothing is any more, once.
func (f *forwarder) say(err error) {
	trouble := ""
	switch {
	case err == nil:
	case f.bus.server.NumLeafNodes() == 0:
		trouble = "not connected"
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, nats.ErrNoResponders), errors.Is(err, context.DeadlineExceeded):
		trouble = "it has no stream that takes " + eventnats.FleetSubjects(f.node) + ", or that answers us"
	default:
		trouble = err.Error()
	}
	switch trouble {
	case f.trouble:
	case "":
		f.bus.log.Info("the fleet is told of events again", "url", f.bus.cfg.Leaf.URL)
	default:
		f.bus.log.Warn("the fleet is not told of events, which wait", "url", f.bus.cfg.Leaf.URL, "why", trouble)
	}
	f.trouble = trouble
}

// load reads the place. A file that is no cursor, as after a power loss, is as
// good as none: the fleet is told all there is, under ids that it knows.
func (f *forwarder) load() error {
	b, err := os.ReadFile(f.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	c, err := event.ParseCursor(strings.TrimSpace(string(b)))
	if err != nil {
		f.bus.log.Warn("the place in the stream that the fleet has is not known", "file", f.path, "err", err)
		return nil
	}
	f.place = &c
	return nil
}

func (f *forwarder) save() error {
	if f.unsaved == 0 {
		return nil
	}
	if err := replace(f.path, []byte(f.place.String()+"\n")); err != nil {
		return err
	}
	f.unsaved, f.saved = 0, time.Now()
	return nil
}

// replace writes a file whole.
func replace(path string, b []byte) error {
	w, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	if err == nil {
		err = w.Sync()
	}
	if closeErr := w.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
