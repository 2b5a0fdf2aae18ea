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
// Every event whose change was acknowledged. Those that the bus took just before
// the crash are published again under the same ids, and the bus tells them once.
// The row of an event that the bus has is deleted in the transaction of a later
// one, so that it costs no sync of its own.
//
// # Limits
//
// While the bus is away events stay in the database, and a log line a minute and
// Waiting say how many wait and since when. What bounds them is the database's
// guard of free disk: below it changes that make something are refused as
// [errdefs.ErrResourceExhausted], and those that remove something go on, with
// their events, in the reserve that the database keeps for them. A bus that is
// back is found within a quarter of a second, and told of all in order.
package outbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
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

	// The rows of events that the bus has go with the transaction of the next
	// event, at most carryMax with each, or alone when there is none for
	// quietTime.
	carryMax  = 16
	quietTime = time.Second
)

// A Box is the outbox of one daemon.
type Box struct {
	db     *kv.DB
	daemon string
	log    *slog.Logger

	// wake has an item when rows were added that Publish may not have seen.
	wake chan struct{}

	// mu guards the fields below it: the rows that the bus has and that are
	// still in the database, in their order, and since when it takes no more.
	mu    sync.Mutex
	taken []row
	away  time.Time
}

// A row is an event on its way. Another database that takes the place of this one
// may have other rows of the same keys.
type row struct {
	key         []byte
	incarnation string // of the database it was read from
	event       event.Event
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

// Add puts e into the outbox as part of tx and gives it its id, unless it has
// one: of an event that somebody else may have told already. The trace context
// is taken from ctx.
func (b *Box) Add(ctx context.Context, tx *kv.Tx, e event.Event) error {
	if err := e.Check(); err != nil {
		return err
	}
	sequence := uint64(1)
	if err := tx.GetJSON(nextKey, &sequence); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return fmt.Errorf("outbox: %w", err)
	}
	if e.ID == "" {
		e.ID = b.daemon + "/" + b.db.Incarnation() + "/" + strconv.FormatUint(sequence, 10)
		if e.Trace == "" {
			e.Trace = traceparent(ctx)
		}
	}
	carried := b.oldest(carryMax)
	if err := errors.Join(tx.PutJSON(rowKey(sequence), e), tx.PutJSON(nextKey, sequence+1), drop(tx, carried)); err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	tx.After(func() {
		b.gone(carried)
		b.ring()
	})
	return nil
}

// drop deletes rows.
func drop(tx *kv.Tx, rows []row) error {
	for _, r := range rows {
		if err := tx.Delete(r.key); err != nil {
			return err
		}
	}
	return nil
}

// took notes that the bus has rows.
func (b *Box) took(rows []row) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range rows {
		b.taken = append(b.taken, row{key: r.key, incarnation: r.incarnation})
	}
}

// oldest returns the first rows that the bus has, at most n. In a transaction they
// are those of its database.
func (b *Box) oldest(n int) []row {
	now := b.db.Incarnation()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.taken = slices.DeleteFunc(b.taken, func(r row) bool { return r.incarnation != now })
	return slices.Clone(b.taken[:min(n, len(b.taken))])
}

// gone notes that rows are no longer in the database.
func (b *Box) gone(rows []row) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(rows) > 0 && len(b.taken) > 0 && bytes.Compare(b.taken[0].key, rows[len(rows)-1].key) <= 0 {
		b.taken = b.taken[1:]
	}
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
	last  row // that the bus has
	retry time.Duration
	away  time.Time // since when the bus does not answer; zero if it does
	said  time.Time
}

// step publishes what waits. Only when nothing more does for a while are rows
// deleted for their own sake: an event is worth more haste than the removal of the
// one before it.
func (p *publishing) step(ctx context.Context) error {
	rows, err := p.next()
	if err != nil {
		return err
	}
	sent, sendErr := p.send(ctx, rows)
	if sent > 0 {
		p.took(rows[:sent])
		p.last = rows[sent-1]
	}
	if len(p.oldest(batch)) == batch {
		if err := p.forget(ctx); err != nil {
			return err
		}
	}
	switch {
	case sendErr != nil:
		p.wait(ctx, sendErr)
	case len(rows) == 0:
		return p.rest(ctx)
	}
	return nil
}

// rest waits for a new event, and tidies up when there is none for a while.
func (p *publishing) rest(ctx context.Context) error {
	var quiet <-chan time.Time
	if len(p.oldest(1)) > 0 {
		t := time.NewTimer(quietTime)
		defer t.Stop()
		quiet = t.C
	}
	select {
	case <-p.wake:
		return nil
	case <-quiet:
		return p.forget(ctx)
	case <-ctx.Done():
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quietTime)
		defer cancel()
		return p.forget(ctx)
	}
}

// next returns the rows past the last that the bus took; of a bus that is away,
// only the one to try it with.
func (p *publishing) next() ([]row, error) {
	most := batch
	if !p.away.IsZero() {
		most = 1
	}
	var rows []row
	err := p.db.View(func(tx *kv.Tx) error {
		now := p.db.Incarnation()
		var from []byte
		if p.last.incarnation == now {
			from = append(slices.Clone(p.last.key), 0)
		}
		for key, value := range tx.Scan(kv.Key("outbox", ""), from) {
			r := row{key: key, incarnation: now}
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
			p.isAway(time.Time{})
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
	for {
		rows := p.oldest(batch)
		if len(rows) == 0 {
			return nil
		}
		err := p.db.Release(ctx, func(tx *kv.Tx) error {
			rows = p.oldest(batch) // of this database
			return drop(tx, rows)
		})
		if errors.Is(err, errdefs.ErrResourceExhausted) {
			p.log.Error("published events stay in the outbox", "err", err)
			p.pause(ctx)
			return nil
		}
		if err != nil {
			return err
		}
		p.gone(rows)
	}
}

// wait waits for a bus that is away.
func (p *publishing) wait(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	if p.away.IsZero() {
		p.away = now
		p.isAway(now)
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
