// Package outbox keeps events in the transaction of the change they report, and
// publishes them afterwards, in order, until the bus has each.
//
// # On disk
//
// Rows of the daemon's own database, under keys that begin with "outbox":
//
//	outbox <sequence>    an event, until the bus has it
//	outbox.next          the next sequence
//
// # What survives a crash
//
// Every event whose change was acknowledged. One that the bus took just before
// the crash is published again under the same id, and the bus tells it once.
//
// # Limits
//
// While the bus is away events stay in the database; what bounds them is the
// database's guard of free disk, and a log line says how many wait.
package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"go.opentelemetry.io/otel/propagation"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/kv"
)

const (
	// batch is how many rows are read at once, and deleted at once.
	batch = 256

	// publishTime is how long the bus may take for one event.
	publishTime = 5 * time.Second

	// A bus that is back is found within retryMax. An attempt costs little:
	// one row is read, and a connection that is not there says so at once.
	retryMin = 50 * time.Millisecond
	retryMax = 250 * time.Millisecond

	// sayAgain is the time between two log lines about a bus that is away.
	sayAgain = time.Minute
)

// A Box is the outbox of one daemon.
type Box struct {
	db     *kv.DB
	daemon string
	log    *slog.Logger

	// wake has an item when rows were added that Publish may not have seen.
	wake chan struct{}
}

// A row is an event on its way.
type row struct {
	key   []byte
	event event.Event
}

var nextKey = kv.Key("outbox.next")

func rowKey(sequence uint64) []byte { return kv.Key("outbox", fmt.Sprintf("%016x", sequence)) }

// Open returns the outbox in db of the named daemon.
func Open(db *kv.DB, daemon string, log *slog.Logger) (*Box, error) {
	b := &Box{db: db, daemon: daemon, log: log, wake: make(chan struct{}, 1)}
	n, oldest, err := b.backlog()
	if err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	if n > 0 {
		log.Info("events wait in the outbox", "count", n, "since", oldest)
	}
	return b, nil
}

// Add puts e into the outbox as part of tx and gives it its id. The trace
// context is taken from ctx.
func (b *Box) Add(ctx context.Context, tx *kv.Tx, e event.Event) error {
	if err := e.Check(); err != nil {
		return err
	}
	sequence := uint64(1)
	if err := tx.GetJSON(nextKey, &sequence); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return fmt.Errorf("outbox: %w", err)
	}
	e.ID = b.daemon + "/" + b.db.Incarnation() + "/" + strconv.FormatUint(sequence, 10)
	if e.Trace == "" {
		e.Trace = traceparent(ctx)
	}
	if err := errors.Join(tx.PutJSON(rowKey(sequence), e), tx.PutJSON(nextKey, sequence+1)); err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	tx.After(b.ring)
	return nil
}

func traceparent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier.Get("traceparent")
}

func (b *Box) ring() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Publish hands events to to, in order, until ctx ends. It is a work of
// [daemon.Serve], and runs once at a time.
func (b *Box) Publish(ctx context.Context, to event.Publisher) error {
	p := &publishing{Box: b, to: to, retry: retryMin}
	for ctx.Err() == nil {
		if err := p.step(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("outbox: %w", err)
		}
	}
	return nil
}

// publishing is the state of one call of Publish.
type publishing struct {
	*Box
	to    event.Publisher
	taken []row // by the bus, and still in the database
	retry time.Duration
	away  time.Time // since when the bus does not answer; zero if it does
	said  time.Time
}

// step publishes what waits. Only when nothing more does are the rows deleted:
// an event is worth more haste than the removal of the one before it.
func (p *publishing) step(ctx context.Context) error {
	rows, err := p.next()
	if err != nil {
		return err
	}
	sent, sendErr := p.send(ctx, rows)
	p.taken = append(p.taken, rows[:sent]...)
	if sendErr != nil || len(rows) == 0 || len(p.taken) >= batch {
		if err := p.forget(ctx); err != nil {
			return err
		}
	}
	switch {
	case sendErr != nil:
		p.wait(ctx, sendErr)
	case len(rows) == 0:
		select {
		case <-p.wake:
		case <-ctx.Done():
		}
	}
	return nil
}

// next returns the rows past the last that the bus took; of a bus that is away,
// only the one to try it with.
func (p *publishing) next() ([]row, error) {
	most := batch
	if !p.away.IsZero() {
		most = 1
	}
	var from []byte
	if n := len(p.taken); n > 0 {
		from = append(p.taken[n-1].key, 0)
	}
	var rows []row
	err := p.db.View(func(tx *kv.Tx) error {
		for key, value := range tx.Scan(kv.Key("outbox", ""), from) {
			r := row{key: key}
			if err := json.Unmarshal(value, &r.event); err != nil {
				p.log.Error("an event in the outbox is damaged: dropped", "row", string(key), "err", err)
				r.event = event.Event{}
			}
			if rows = append(rows, r); len(rows) == most {
				break
			}
		}
		return nil
	})
	return rows, err
}

// send publishes rows until one fails, and returns how many are dealt with.
func (p *publishing) send(ctx context.Context, rows []row) (int, error) {
	for i, r := range rows {
		if r.event.ID == "" {
			continue // damaged
		}
		err := p.publish(ctx, r.event)
		if errors.Is(err, errdefs.ErrInvalidArgument) {
			// It would be refused for ever, and everything behind it wait.
			p.log.Error("the bus refuses an event: dropped", "event", r.event.ID, "topic", r.event.Topic, "err", err)
			err = nil
		}
		if err != nil {
			return i, err
		}
		if !p.away.IsZero() {
			p.log.Info("the bus takes events again", "away", time.Since(p.away).Round(time.Millisecond).String())
		}
		p.away, p.retry = time.Time{}, retryMin
	}
	return len(rows), nil
}

func (p *publishing) publish(ctx context.Context, e event.Event) error {
	ctx, cancel := context.WithTimeout(ctx, publishTime)
	defer cancel()
	return p.to.Publish(ctx, e)
}

// forget deletes the rows that the bus has. Deleting frees space, and a disk
// too full even for that is no reason to stop publishing.
func (p *publishing) forget(ctx context.Context) error {
	for rows := range slices.Chunk(p.taken, batch) {
		err := p.db.Release(ctx, func(tx *kv.Tx) error {
			for _, r := range rows {
				if err := tx.Delete(r.key); err != nil {
					return err
				}
			}
			return nil
		})
		if errors.Is(err, errdefs.ErrResourceExhausted) {
			p.log.Error("published events stay in the outbox", "count", len(p.taken), "err", err)
			p.pause(ctx)
			return nil
		}
		if err != nil {
			return err
		}
	}
	p.taken = p.taken[:0]
	return nil
}

// wait waits for a bus that is away.
func (p *publishing) wait(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	if p.away.IsZero() {
		p.away = now
	}
	if now.Sub(p.said) >= sayAgain {
		p.said = now
		n, oldest, _ := p.backlog()
		p.log.Warn("the bus does not take events: keeping them", "count", n, "since", oldest, "err", err)
	}
	p.pause(ctx)
}

func (p *publishing) pause(ctx context.Context) {
	t := time.NewTimer(p.retry)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	p.retry = min(2*p.retry, retryMax)
}

// backlog counts the rows and says of when the first is.
func (b *Box) backlog() (n int, oldest time.Time, err error) {
	err = b.db.View(func(tx *kv.Tx) error {
		for _, value := range tx.Scan(kv.Key("outbox", ""), nil) {
			if n++; n == 1 {
				var e event.Event
				if err := json.Unmarshal(value, &e); err != nil {
					return err
				}
				oldest = e.Time
			}
		}
		return nil
	})
	return n, oldest, err
}
