package outbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventtest"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/outbox"
)

// A daemon is a database with an outbox.
type daemon struct {
	*kv.DB
	*outbox.Box
	t *testing.T
}

func open(t *testing.T, dir string) daemon {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	db, err := kv.Open(kv.Options{Dir: filepath.Join(dir, "db"), Owner: "taskd", Schema: 1, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	box, err := outbox.Open(db, "taskd", log)
	if err != nil {
		t.Fatal(err)
	}
	return daemon{db, box, t}
}

// tell makes a change and its event.
func (d daemon) tell(id string) {
	d.t.Helper()
	if err := d.Update(d.t.Context(), func(tx *kv.Tx) error {
		return errors.Join(tx.Put(kv.Key("container", id), nil),
			d.Add(d.t.Context(), tx, event.New("one", time.Now(), event.ContainerDelete{ID: id})))
	}); err != nil {
		d.t.Fatal(err)
	}
}

// waiting counts the rows.
func (d daemon) waiting() (n int) {
	d.t.Helper()
	if err := d.View(func(tx *kv.Tx) error {
		for range tx.Scan(kv.Key("outbox", ""), nil) {
			n++
		}
		return nil
	}); err != nil {
		d.t.Fatal(err)
	}
	return n
}

// publishing runs Publish until stop is called.
func (d daemon) publishing(to event.Publisher) (stop func()) {
	ctx, cancel := context.WithCancel(d.t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		if err := d.Publish(ctx, to); err != nil {
			d.t.Errorf("Publish: %v", err)
		}
	})
	return func() { cancel(); all.Wait() }
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		pause()
	}
}

func pause() { <-time.After(time.Millisecond) }

func ids(events []event.Event) []string {
	var found []string
	for _, e := range events {
		found = append(found, e.Subject)
	}
	return found
}

// A flaky bus fails while err is not nil, and sees every attempt.
type flaky struct {
	event.Publisher
	mu    sync.Mutex // guards what is below
	err   error
	tries []time.Time
}

func (f *flaky) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *flaky) Publish(ctx context.Context, e event.Event) error {
	f.mu.Lock()
	f.tries = append(f.tries, time.Now())
	err := f.err
	f.mu.Unlock()
	if err != nil {
		return err
	}
	return f.Publisher.Publish(ctx, e)
}

func TestEventsArePublishedInOrderAndForgotten(t *testing.T) {
	defer goleak.VerifyNone(t)
	d := open(t, t.TempDir())
	defer d.Close()
	bus := eventtest.NewMemory()
	var want []string
	for i := range 600 { // more than is read at once
		d.tell(fmt.Sprint("c", i))
		want = append(want, fmt.Sprint("c", i))
	}
	stop := d.publishing(bus)
	eventually(t, "600 events", func() bool { return len(bus.Events()) == 600 })
	for i := range 10 {
		d.tell(fmt.Sprint("d", i))
		want = append(want, fmt.Sprint("d", i))
		eventually(t, "the event", func() bool { return len(bus.Events()) == 601+i })
	}
	eventually(t, "an empty outbox", func() bool { return d.waiting() == 0 })
	stop()
	if diff := cmp.Diff(want, ids(bus.Events())); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	first := bus.Events()[0]
	if want := "taskd/" + d.Incarnation() + "/1"; first.ID != want {
		t.Errorf("the first id is %s, want %s", first.ID, want)
	}
}

func TestAnEventIsToldOnlyIfTheChangeIsTrue(t *testing.T) {
	d := open(t, t.TempDir())
	no := errors.New("no")
	err := d.Update(t.Context(), func(tx *kv.Tx) error {
		return errors.Join(d.Add(t.Context(), tx, event.New("one", time.Now(), event.ContainerDelete{ID: "c"})), no)
	})
	if !errors.Is(err, no) || d.waiting() != 0 {
		t.Errorf("Update: %v, %d events wait", err, d.waiting())
	}
	err = d.Update(t.Context(), func(tx *kv.Tx) error {
		return d.Add(t.Context(), tx, event.New("..", time.Now(), event.ContainerDelete{ID: "c"}))
	})
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("Add of a bad event: %v", err)
	}
}

func TestTheTraceOfTheCallIsKept(t *testing.T) {
	d := open(t, t.TempDir())
	bus := eventtest.NewMemory()
	ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled,
	}))
	if err := d.Update(ctx, func(tx *kv.Tx) error {
		return d.Add(ctx, tx, event.New("one", time.Now(), event.ContainerDelete{ID: "c"}))
	}); err != nil {
		t.Fatal(err)
	}
	defer d.publishing(bus)()
	eventually(t, "the event", func() bool { return len(bus.Events()) == 1 })
	if got, want := bus.Events()[0].Trace, "00-"+"01"+strings.Repeat("0", 30)+"-02"+strings.Repeat("0", 14)+"-01"; got != want {
		t.Errorf("traceparent is %s, want %s", got, want)
	}
}

func TestEventsOutliveTheDaemonAndTheBus(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	bus := eventtest.NewMemory()
	f := &flaky{Publisher: bus}
	stop := d.publishing(f)
	d.tell("before")
	eventually(t, "the event", func() bool { return len(bus.Events()) == 1 })
	f.fail(errdefs.ErrUnavailable)
	d.tell("while away 1")
	d.tell("while away 2")
	eventually(t, "an attempt", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.tries) > 2 })
	stop()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	d = open(t, dir)
	stop = d.publishing(f)
	d.tell("after restart")
	f.fail(nil)
	eventually(t, "all events", func() bool { return len(bus.Events()) == 4 })
	eventually(t, "an empty outbox", func() bool { return d.waiting() == 0 })
	stop()
	if diff := cmp.Diff([]string{"before", "while away 1", "while away 2", "after restart"}, ids(bus.Events())); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if got := bus.Events()[3].ID; !strings.HasSuffix(got, "/4") {
		t.Errorf("the last id is %s", got)
	}
}

func TestAnEventThatTheBusRefusesDoesNotStopTheOthers(t *testing.T) {
	d := open(t, t.TempDir())
	bus := eventtest.NewMemory()
	f := &flaky{Publisher: bus}
	f.fail(fmt.Errorf("too large: %w", errdefs.ErrInvalidArgument))
	d.tell("poison")
	defer d.publishing(f)()
	eventually(t, "an empty outbox", func() bool { return d.waiting() == 0 })
	f.fail(nil)
	d.tell("good")
	eventually(t, "the event", func() bool { return len(bus.Events()) == 1 })
}

func TestABusThatIsAwayIsFoundSoon(t *testing.T) {
	d := open(t, t.TempDir())
	d.tell("c")
	f := &flaky{Publisher: eventtest.NewMemory(), err: errdefs.ErrUnavailable}
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	if err := d.Publish(ctx, f); err != nil {
		t.Error(err)
	}
	if len(f.tries) < 4 || len(f.tries) > 10 {
		t.Errorf("%d attempts, want about 7", len(f.tries))
	}
	for i, at := range f.tries[1:] {
		if gap := at.Sub(f.tries[i]); gap > time.Second {
			t.Errorf("attempt %d came %v after the one before", i+1, gap)
		}
	}
}

// TestADatabaseThatTakesThePlaceKeepsItsEvents restores a backup while rows that
// the bus has are still in the database: those of the backup, of the same
// sequences, are other events.
func TestADatabaseThatTakesThePlaceKeepsItsEvents(t *testing.T) {
	defer goleak.VerifyNone(t)
	d := open(t, t.TempDir())
	defer d.Close()
	d.tell("before")
	var backup bytes.Buffer
	if err := d.Backup(t.Context(), &backup); err != nil {
		t.Fatal(err)
	}
	bus := eventtest.NewMemory()
	stop := d.publishing(bus)
	for i := range 3 {
		d.tell(fmt.Sprint("lost", i))
	}
	eventually(t, "four events", func() bool { return len(bus.Events()) == 4 })
	if _, err := d.Replace(t.Context(), &backup); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		d.tell(fmt.Sprint("after", i))
	}
	eventually(t, "the events of the backup and those after it", func() bool {
		got := ids(bus.Events())
		return len(got) >= 7 && slices.Equal(got[len(got)-3:], []string{"after0", "after1", "after2"})
	})
	eventually(t, "an empty outbox", func() bool { return d.waiting() == 0 })
	stop()
}

// TestAnEventTakesTheRowsBeforeItAlong looks that a row that the bus has costs no
// transaction of its own while there are events.
func TestAnEventTakesTheRowsBeforeItAlong(t *testing.T) {
	defer goleak.VerifyNone(t)
	d := open(t, t.TempDir())
	defer d.Close()
	bus := eventtest.NewMemory()
	stop := d.publishing(bus)
	defer stop()
	before, err := d.Commits()
	if err != nil {
		t.Fatal(err)
	}
	const n = 100
	for i := range n {
		d.tell(fmt.Sprint("c", i))
		eventually(t, "the event", func() bool { return len(bus.Events()) == i+1 })
	}
	after, err := d.Commits()
	if err != nil {
		t.Fatal(err)
	}
	// A slow machine may be quiet for a while now and then.
	if more := after - before; more > n+n/4 {
		t.Errorf("%d commits for %d events", more, n)
	}
	if left := d.waiting(); left > carryMax+1 {
		t.Errorf("%d rows are left after %d events, each of which took the others along", left, n)
	}
}

// carryMax is the outbox's.
const carryMax = 16

func TestWaitingIsWhatTheBusHasNotTaken(t *testing.T) {
	d := open(t, t.TempDir())
	want := func(depth int, away bool) func() bool {
		return func() bool {
			w, err := d.Waiting()
			if err != nil {
				t.Fatal(err)
			}
			return w.Depth == depth && w.Oldest.IsZero() == (depth == 0) && w.Away.IsZero() != away
		}
	}
	if !want(0, false)() {
		t.Error("something waits in an empty outbox")
	}
	bus := &flaky{Publisher: eventtest.NewMemory()}
	bus.fail(errdefs.ErrUnavailable)
	began := time.Now()
	for i := range 20 {
		d.tell(fmt.Sprint("c", i))
	}
	stop := d.publishing(bus)
	eventually(t, "twenty wait", want(20, true))
	if w, err := d.Waiting(); err != nil || w.Oldest.Before(began.Add(-time.Minute)) || w.Away.Before(began) {
		t.Errorf("Waiting: %+v, %v", w, err)
	}
	bus.fail(nil)
	eventually(t, "none wait", want(0, false))
	d.tell("later")
	eventually(t, "none wait", want(0, false))
	stop()
	if !want(0, false)() {
		t.Error("something waits in the end")
	}
	d.tell("last")
	if !want(1, false)() {
		t.Error("what was told without a publisher does not wait")
	}
}
