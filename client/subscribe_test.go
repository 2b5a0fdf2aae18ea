package client_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/client/clienttest"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventtest"
)

// A subscriber notes what it is told, and ends its subscription after so much.
type subscriber struct {
	client.Subscription
	t    *testing.T
	bus  event.Bus
	told []string
}

func newSubscriber(t *testing.T, bus event.Bus) *subscriber {
	return &subscriber{t: t, bus: bus, Subscription: client.Subscription{Name: "sub", Cursor: filepath.Join(t.TempDir(), "cursor")}}
}

// run subscribes until n more is told, as a process of its own would.
func (s *subscriber) run(n int) error {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	node := clienttest.New(s.t, nil)
	node.Events = s.bus
	sub, began := s.Subscription, len(s.told)
	note := func(what string) error {
		if s.told = append(s.told, what); len(s.told) == began+n {
			cancel()
		}
		return nil
	}
	if sub.Handle == nil {
		sub.Handle = func(_ context.Context, e event.Event) error { return note(e.Subject) }
	}
	if sub.Relist == nil {
		sub.Relist = func(_ context.Context, lost *event.Gap) error {
			if lost == nil {
				return note("list")
			}
			return note(fmt.Sprint("lost ", lost.From.Sequence, " to ", lost.To.Sequence))
		}
	}
	err := node.Subscribe(ctx, sub)
	if errors.Is(err, context.DeadlineExceeded) {
		s.t.Fatalf("not in time: told %q", s.told)
	}
	return err
}

func (s *subscriber) wants(want ...string) {
	s.t.Helper()
	if d := cmp.Diff(want, s.told); d != "" {
		s.t.Fatalf("-want +told\n%s", d)
	}
}

func (s *subscriber) kept() string {
	s.t.Helper()
	b, err := os.ReadFile(s.Cursor)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

func tell(t *testing.T, bus event.Bus, from, to int) {
	t.Helper()
	for i := from; i <= to; i++ {
		if err := bus.Publish(t.Context(), event.New("default", time.Now(), event.ImageCreate{Name: fmt.Sprint(i)})); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSubscribeGoesOnThroughRestarts(t *testing.T) {
	bus := eventtest.NewMemory()
	s := newSubscriber(t, &restartingBus{Bus: bus, after: 2})
	if err := s.run(1); err != context.Canceled {
		t.Errorf("Subscribe: %v", err)
	}
	tell(t, bus, 1, 9) // nobody is there
	for _, n := range []int{1, 4, 4} {
		if err := s.run(n); err != context.Canceled {
			t.Errorf("Subscribe: %v", err)
		}
	}
	s.wants("list", "1", "2", "3", "4", "5", "6", "7", "8", "9")
	if c, err := event.ParseCursor(s.kept()[:len(s.kept())-1]); err != nil || c.Sequence != 9 {
		t.Errorf("the file says %q", s.kept())
	}
}

func TestSubscribeHandlesAgainUntilItIsDone(t *testing.T) {
	bus := eventtest.NewMemory()
	s := newSubscriber(t, bus)
	s.Since = time.Now().Add(-time.Hour)
	tell(t, bus, 1, 3)
	var retried []string
	s.Retry = func(err error) { retried = append(retried, err.Error()) }
	failures := map[string]int{"list": 2, "2": 3}
	ctx, cancel := context.WithCancel(t.Context())
	try := func(what string) error {
		s.told = append(s.told, what)
		if failures[what]--; failures[what] >= 0 {
			return errors.New("not yet: " + what)
		}
		if what == "3" {
			cancel()
			return errors.New("the end came first")
		}
		return nil
	}
	s.Handle = func(_ context.Context, e event.Event) error { return try(e.Subject) }
	s.Relist = func(context.Context, *event.Gap) error { return try("list") }
	node := clienttest.New(t, nil)
	node.Events = bus
	if err := node.Subscribe(ctx, s.Subscription); err != context.Canceled {
		t.Errorf("Subscribe: %v", err)
	}
	s.wants("list", "list", "list", "1", "2", "2", "2", "2", "3")
	if d := cmp.Diff([]string{"not yet: list", "not yet: list", "not yet: 2", "not yet: 2", "not yet: 2"}, retried); d != "" {
		t.Errorf("retried: -want +got\n%s", d)
	}
	s.told, s.Handle, s.Relist, s.Retry = nil, nil, nil, nil
	_ = s.run(1)
	s.wants("3") // it was not done
}

func TestSubscribeListsBehindAGap(t *testing.T) {
	bus := eventtest.NewMemory()
	s := newSubscriber(t, bus)
	_ = s.run(1)
	tell(t, bus, 1, 1)
	_ = s.run(1)
	tell(t, bus, 2, 5)
	bus.Forget()
	tell(t, bus, 6, 6)

	// It ends while it lists: then it has not listed.
	before, listed := s.kept(), s.Relist
	ctx, cancel := context.WithCancel(t.Context())
	node := clienttest.New(t, nil)
	node.Events = bus
	s.Relist = func(context.Context, *event.Gap) error { cancel(); return ctx.Err() }
	s.Handle = func(context.Context, event.Event) error { t.Error("an event before the list"); return nil }
	if err := node.Subscribe(ctx, s.Subscription); err != context.Canceled {
		t.Errorf("Subscribe: %v", err)
	}
	if after := s.kept(); after != before {
		t.Errorf("the file says %q, said %q", after, before)
	}

	s.Relist, s.Handle = listed, nil
	_ = s.run(2)
	s.wants("list", "1", "lost 1 to 5", "6")

	// A file that says nothing, and one of another bus.
	for _, damaged := range []string{"", "\x00\x00\x00", "another/3\n"} {
		if err := os.WriteFile(s.Cursor, []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		s.told = nil
		_ = s.run(2)
		from := 0
		if damaged == "another/3\n" {
			from = 3
		}
		s.wants(fmt.Sprintf("lost %d to 5", from), "6")
	}
}

// A twiceBus tells each event twice, with different places.
type twiceBus struct{ event.Bus }

func (b twiceBus) Subscribe(ctx context.Context, o event.SubscribeOptions) (iter.Seq2[event.Event, error], error) {
	events, err := b.Bus.Subscribe(ctx, o)
	return func(yield func(event.Event, error) bool) {
		for e, err := range events {
			if !yield(e, err) || err == nil && !yield(e, nil) {
				return
			}
		}
	}, err
}

func TestSubscribeHandlesAnEventOnce(t *testing.T) {
	bus := eventtest.NewMemory()
	s := newSubscriber(t, twiceBus{bus})
	_ = s.run(1)
	tell(t, bus, 1, 4)
	_ = s.run(4)
	s.wants("list", "1", "2", "3", "4")
}

func TestSubscribeIsToldWhatItAskedFor(t *testing.T) {
	bus := eventtest.NewMemory()
	s := newSubscriber(t, bus)
	s.Cursor, s.Since = "", time.Now().Add(-time.Hour) // nothing is kept
	s.Subjects, s.Filters = []string{"gantry.v1.*.images.>"}, []string{"namespace==default"}
	tell(t, bus, 1, 2)
	for _, e := range []event.Event{
		event.New("other", time.Now(), event.ImageCreate{Name: "3"}),
		event.New("default", time.Now(), event.ContainerDelete{ID: "4"}),
	} {
		if err := bus.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	tell(t, bus, 5, 5)
	_ = s.run(4)
	_ = s.run(4)
	s.wants("list", "1", "2", "5", "list", "1", "2", "5")
}

func TestSubscribeSaysWhatCannotBe(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*client.Subscription)
		kind   error
	}{
		"a filter that does not parse":  {func(s *client.Subscription) { s.Filters = []string{"a=b"} }, errdefs.ErrInvalidArgument},
		"no name":                       {func(s *client.Subscription) { s.Name = "" }, errdefs.ErrInvalidArgument},
		"a bad name":                    {func(s *client.Subscription) { s.Name = "a b" }, errdefs.ErrInvalidArgument},
		"a directory that is not there": {func(s *client.Subscription) { s.Cursor = filepath.Join(s.Cursor, "x") }, os.ErrNotExist},
		"a cursor that is a directory":  {func(s *client.Subscription) { s.Cursor = filepath.Dir(s.Cursor) }, nil},
	} {
		s := newSubscriber(t, eventtest.NewMemory())
		c.change(&s.Subscription)
		if err := s.run(1); err == nil || c.kind != nil && !errors.Is(err, c.kind) || errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want kind %v", name, err, c.kind)
		}
	}
	node := clienttest.New(t, nil)
	if err := node.Subscribe(t.Context(), client.Subscription{Name: "a"}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("no functions: %v", err)
	}
}

// What cannot be kept is tried again, and said at the end.
func TestSubscribeGoesOnWhenTheCursorCannotBeKept(t *testing.T) {
	bus := eventtest.NewMemory()
	s := newSubscriber(t, bus)
	if err := os.Mkdir(s.Cursor+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	tell(t, bus, 1, 3)
	s.Since = time.Now().Add(-time.Hour)
	if err := s.run(4); !errors.Is(err, context.Canceled) || !errors.Is(err, os.ErrExist) && err == context.Canceled {
		t.Errorf("Subscribe: %v, want also why nothing was kept", err)
	}
	s.wants("list", "1", "2", "3")
}

// TestSubscribeSaysThatTheBusIsThere holds that who has nothing to be told knows
// whether that is so, or nobody is there to tell.
func TestSubscribeSaysThatTheBusIsThere(t *testing.T) {
	s := newSubscriber(t, eventtest.NewMemory())
	s.Reached = func(event.Cursor) { s.told = append(s.told, "there") }
	if err := s.run(2); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	s.wants("there", "list")
}
