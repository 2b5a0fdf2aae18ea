// Package eventtest holds the promises of [event.Bus] and a bus in memory that
// keeps them.
package eventtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/gantryd/gantry/services/event"
)

// Run tests the buses that open returns. It calls open once per promise and
// expects a bus on which nothing else is published.
func Run(t *testing.T, open func(t *testing.T) event.Bus) {
	for _, p := range promises {
		t.Run(p.name, func(t *testing.T) { p.check(t, open(t)) })
	}
}

var promises = []struct {
	name  string
	check func(*testing.T, event.Bus)
}{
	{"an event is told as it was published", asPublished},
	{"a payload of an unknown type is told as it came", unknownType},
	{"an event without id and time is given both", stamped},
	{"an event whose name is bad is refused", refused},
	{"an event told twice is told once", twice},
	{"a subscription begins when Subscribe returns", begins},
	{"every subscriber is told the same order", oneOrder},
	{"a publisher's events are told in its order", publisherOrder},
	{"a subscriber that is slow misses nothing", slow},
	{"filters match namespace, topic and fields", filters},
	{"a filter that does not parse is refused", badFilter},
	{"a cursor goes on where it stopped", cursor},
	{"a subscription says where it begins", saysWhere},
	{"a time goes on with what was taken in since", since},
	{"a subscription begins once", beginsOnce},
	{"a cursor of another stream is a gap that says where to go on", foreignCursor},
	{"the end of the context ends a subscription", ends},
	{"a loop that is left lets go", left},
	{"a context that has ended publishes nothing", publishEnded},
}

// patience is how long an event may take before a test gives up.
const patience = 20 * time.Second

// at is a time that survives every encoding.
var at = time.Date(2026, 2, 3, 4, 5, 6, 789_000_001, time.UTC)

func remove(ns, id string) event.Event {
	return event.New(ns, at, event.ContainerDelete{ID: id})
}

// numbered is a publisher's n-th event.
func numbered(publisher string, n int) event.Event {
	e := remove("one", fmt.Sprint(publisher, ".", n))
	e.ID = fmt.Sprintf("%s/test/%d", publisher, n)
	return e
}

func publish(t *testing.T, b event.Publisher, events ...event.Event) {
	t.Helper()
	for _, e := range events {
		if err := b.Publish(t.Context(), e); err != nil {
			t.Fatalf("Publish(%s %s): %v", e.Topic, e.ID, err)
		}
	}
}

// A subscription is a running one, read with a deadline.
type subscription struct {
	t    *testing.T
	next func() (event.Event, error, bool)
	late *time.Timer
}

func subscribe(t *testing.T, b event.Subscriber, o event.SubscribeOptions) *subscription {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	events, err := b.Subscribe(ctx, o)
	if err != nil {
		t.Fatalf("Subscribe(%v): %v", o, err)
	}
	next, stop := iter.Pull2(events)
	s := &subscription{t: t, next: next}
	s.late = time.AfterFunc(patience, func() { cancel(errors.New("no event in time")) })
	t.Cleanup(func() {
		cancel(nil)
		s.late.Stop()
		stop()
	})
	return s
}

// take returns the next n events.
func (s *subscription) take(n int) []event.Event {
	s.t.Helper()
	var events []event.Event
	for len(events) < n {
		s.late.Reset(patience)
		e, err, ok := s.next()
		if err != nil || !ok {
			s.t.Fatalf("after %d of %d events: %v, %t", len(events), n, err, ok)
		}
		events = append(events, e)
	}
	return events
}

func subjects(events []event.Event) []string {
	var found []string
	for _, e := range events {
		found = append(found, e.About())
	}
	return found
}

func wantKind(t *testing.T, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("got error %v, want kind %v", err, kind)
	}
}

// sameEvent compares events as a subscriber sees them: the place in the stream
// is the bus's, and JSON is equal if it says the same.
var sameEvent = cmp.Options{
	cmpopts.IgnoreFields(event.Event{}, "Sequence", "Epoch"),
	cmp.Comparer(func(a, b []byte) bool {
		return bytes.Equal(a, b) || json.Valid(a) && json.Valid(b) && cmp.Equal(says(a), says(b))
	}),
}

func says(b []byte) (v any) {
	_ = json.Unmarshal(b, &v)
	return v
}

func asPublished(t *testing.T, b event.Bus) {
	s := subscribe(t, b, event.SubscribeOptions{})
	events := []event.Event{
		event.New("one", at, event.ContentDelete{Digest: "sha256:00"}),
		event.New("a.b_c-d", at, event.SnapshotPrepare{Key: "a key \"with\"\r\nall % of / it é", Parent: "p", Snapshotter: "overlayfs"}),
		event.New("one", at, event.ImageCreate{Name: "example.org/a:1", Labels: map[string]string{"a.b/c": "d"}}),
		event.New("one", at, event.ContainerCreate{ID: "c", Image: "i", Runtime: event.ContainerRuntime{Name: "io.containerd.runc.v2"}}),
		event.New("one", at, event.TaskExit{ContainerID: "c", ID: "e", Pid: 7, ExitStatus: 137, ExitedAt: at}),
	}
	for i := range events {
		events[i].ID = fmt.Sprint("daemon/incarnation/", i+1)
		events[i].Trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	}
	publish(t, b, events...)
	got := s.take(len(events))
	if d := cmp.Diff(events, got, sameEvent); d != "" {
		t.Errorf("-published +told\n%s", d)
	}
	for i, e := range got {
		if e.Epoch == "" || e.Epoch != got[0].Epoch || i > 0 && e.Sequence <= got[i-1].Sequence {
			t.Errorf("event %d has place %s/%d after %s/%d", i, e.Epoch, e.Sequence, got[0].Epoch, got[max(i-1, 0)].Sequence)
		}
	}
}

func unknownType(t *testing.T, b event.Bus) {
	s := subscribe(t, b, event.SubscribeOptions{Filters: []string{`topic=="/plugins/moved"`}})
	e := event.Event{
		ID: "plugin/x/1", Namespace: "one", Topic: "/plugins/moved", Time: at, Subject: "some thing",
		Type: "example.org/moved.v1", Raw: []byte{0, 1, 2, 0xff, '\r', '\n'},
	}
	publish(t, b, e)
	if d := cmp.Diff([]event.Event{e}, s.take(1), sameEvent, cmpopts.IgnoreFields(event.Event{}, "Subject")); d != "" {
		t.Errorf("-published +told\n%s", d)
	}
}

func stamped(t *testing.T, b event.Bus) {
	s := subscribe(t, b, event.SubscribeOptions{})
	e := remove("one", "a")
	e.Time = time.Time{}
	publish(t, b, e, remove("one", "b"), remove("one", "b"), remove("one", "c"))
	got := s.take(3)
	if got[0].ID == "" || got[0].ID == got[1].ID || time.Since(got[0].Time).Abs() > time.Hour {
		t.Errorf("told %+v and %+v", got[0], got[1])
	}
	if d := cmp.Diff([]string{"a", "b", "c"}, subjects(got)); d != "" {
		t.Errorf("the same event, without id, is told once: -want +got\n%s", d)
	}
}

func refused(t *testing.T, b event.Bus) {
	for _, e := range []event.Event{
		{Namespace: "", Topic: "/a/b"},
		{Namespace: "..", Topic: "/a/b"},
		{Namespace: "a*", Topic: "/a/b"},
		{Namespace: "one", Topic: ""},
		{Namespace: "one", Topic: "a/b"},
		{Namespace: "one", Topic: "/a"},
		{Namespace: "one", Topic: "/a/"},
		{Namespace: "one", Topic: "/a/>"},
		{Namespace: "one", Topic: "/a/b\r\nc"},
		{Namespace: "one", Topic: "/a/" + strings.Repeat("b", 77)},
	} {
		e.Time, e.Type, e.JSON = at, "containerd.events.ContainerDelete", []byte(`{"id":"c"}`)
		if err := b.Publish(t.Context(), e); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Publish of namespace %q and topic %q: %v, want %v", e.Namespace, e.Topic, err, errdefs.ErrInvalidArgument)
		}
	}
}

func twice(t *testing.T, b event.Bus) {
	s := subscribe(t, b, event.SubscribeOptions{})
	publish(t, b, numbered("a", 1), numbered("a", 2), numbered("a", 1), numbered("a", 2), numbered("a", 3))
	if d := cmp.Diff([]string{"a.1", "a.2", "a.3"}, subjects(s.take(3))); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

func begins(t *testing.T, b event.Bus) {
	for i := range 20 {
		publish(t, b, numbered("before", i))
		s := subscribe(t, b, event.SubscribeOptions{})
		publish(t, b, numbered("after", i))
		if got, want := s.take(1)[0].Subject, fmt.Sprint("after.", i); got != want {
			t.Fatalf("the first event told is %s, want %s", got, want)
		}
	}
}

// publishing publishes n events from each publisher at once.
func publishing(t *testing.T, b event.Publisher, publishers []string, n int) (wait func()) {
	var all sync.WaitGroup
	for _, p := range publishers {
		all.Go(func() {
			for i := range n {
				if err := b.Publish(t.Context(), numbered(p, i)); err != nil {
					t.Errorf("Publish: %v", err)
				}
			}
		})
	}
	return all.Wait
}

func oneOrder(t *testing.T, b event.Bus) {
	const n = 50
	publishers := []string{"a", "b", "c", "d"}
	var subs []*subscription
	for range 4 {
		subs = append(subs, subscribe(t, b, event.SubscribeOptions{}))
	}
	publishing(t, b, publishers, n)()
	want := subjects(subs[0].take(n * len(publishers)))
	for _, s := range subs[1:] {
		if d := cmp.Diff(want, subjects(s.take(len(want)))); d != "" {
			t.Fatalf("two subscribers were told different orders\n%s", d)
		}
	}
}

func publisherOrder(t *testing.T, b event.Bus) {
	const n = 50
	s := subscribe(t, b, event.SubscribeOptions{})
	wait := publishing(t, b, []string{"a", "b", "c"}, n)
	defer wait()
	last := map[string]int{"a": -1, "b": -1, "c": -1}
	for _, e := range s.take(3 * n) {
		var of string
		var i int
		if _, err := fmt.Sscanf(strings.Replace(e.Subject, ".", " ", 1), "%s %d", &of, &i); err != nil || i != last[of]+1 {
			t.Fatalf("told %s after %d: %v", e.Subject, last[of], err)
		}
		last[of] = i
	}
}

func slow(t *testing.T, b event.Bus) {
	const n = 400
	publishers := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	s := subscribe(t, b, event.SubscribeOptions{})
	publish(t, b, numbered("first", 0))
	s.take(1)
	publishing(t, b, publishers, n)()
	got := subjects(s.take(n * len(publishers)))
	slices.Sort(got)
	if unique := slices.Compact(got); len(unique) != n*len(publishers) {
		t.Errorf("%d different events were told, want %d", len(unique), n*len(publishers))
	}
}

func filters(t *testing.T, b event.Bus) {
	published := []event.Event{
		remove("one", "c0"),
		remove("two", "c1"),
		event.New("one", at, event.TaskExit{ContainerID: "c2", ID: "e", ExitStatus: 3, ExitedAt: at}),
		event.New("one", at, event.ImageCreate{Name: "i3", Labels: map[string]string{"example.org/a": "b"}}),
		event.New("two", at, event.ContainerCreate{ID: "c4", Runtime: event.ContainerRuntime{Name: "io.containerd.runc.v2"}}),
		event.New("two", at, event.NamespaceDelete{Name: "end"}),
	}
	for _, c := range []struct {
		filters []string
		want    string
	}{
		{nil, "c0 c1 c2 i3 c4"},
		{[]string{"namespace==one"}, "c0 c2 i3"},
		{[]string{`topic=="/containers/delete"`}, "c0 c1"},
		{[]string{"topic~=|^/containers/|"}, "c0 c1 c4"},
		{[]string{"namespace==two,topic~=|^/containers/|"}, "c1 c4"},
		{[]string{"namespace==two", `topic=="/tasks/exit"`}, "c1 c2 c4"},
		{[]string{"event.id==c0"}, "c0"},
		{[]string{"event.container_id==c2,event.exit_status==3"}, "c2"},
		{[]string{"event.runtime.name==io.containerd.runc.v2"}, "c4"},
		{[]string{`event.labels."example.org/a"==b`}, "i3"},
		{[]string{"event.container_id"}, "c2"},
		{[]string{"event.id==nothing"}, ""},
		{[]string{"id==c0"}, ""},
	} {
		// What ends each list matches by another alternative.
		if c.filters != nil {
			c.filters = append(c.filters, `topic=="/namespaces/delete"`)
		}
		s := subscribe(t, b, event.SubscribeOptions{Filters: c.filters})
		var got []string
		for i, e := range published {
			e.ID = fmt.Sprintf("filters/%s%s/%d", c.want, strings.Join(c.filters, ""), i)
			publish(t, b, e)
		}
		for {
			e := s.take(1)[0]
			if e.Subject == "end" {
				break
			}
			got = append(got, e.Subject)
		}
		if got := strings.Join(got, " "); got != c.want {
			t.Errorf("filters %q: told %q, want %q", c.filters, got, c.want)
		}
	}
}

func badFilter(t *testing.T, b event.Bus) {
	for _, f := range []string{"topic==", "==", "topic=x", `topic=="x`} {
		_, err := b.Subscribe(t.Context(), event.SubscribeOptions{Filters: []string{f}})
		wantKind(t, err, errdefs.ErrInvalidArgument)
	}
}

func cursor(t *testing.T, b event.Bus) {
	s := subscribe(t, b, event.SubscribeOptions{})
	for i := range 10 {
		publish(t, b, numbered("a", i))
	}
	told := s.take(10)
	for _, i := range []int{0, 4, 9} {
		again := subscribe(t, b, event.SubscribeOptions{After: &event.Cursor{Epoch: told[i].Epoch, Sequence: told[i].Sequence}})
		publish(t, b, numbered("more", i))
		want := append(subjects(told[i+1:]), fmt.Sprint("more.", i))
		var got []string
		for len(got) < len(want) {
			if e := again.take(1)[0]; strings.HasPrefix(e.Subject, "a.") || e.Subject == want[len(want)-1] {
				got = append(got, e.Subject)
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("after event %d: -want +got\n%s", i, d)
		}
	}
	matching := subscribe(t, b, event.SubscribeOptions{
		Filters: []string{"event.id==a.7"},
		After:   &event.Cursor{Epoch: told[0].Epoch, Sequence: told[0].Sequence - 1},
	})
	if d := cmp.Diff(told[7:8], matching.take(1), sameEvent); d != "" {
		t.Errorf("told again: -want +got\n%s", d)
	}
}

func saysWhere(t *testing.T, b event.Bus) {
	publish(t, b, numbered("a", 1))
	var reached []event.Cursor
	note := func(c event.Cursor) { reached = append(reached, c) }
	subscribe(t, b, event.SubscribeOptions{Filters: []string{"event.id==nothing"}, Reached: note})
	if len(reached) != 1 || reached[0].Epoch == "" {
		t.Fatalf("reached %v before anything happened, want one cursor", reached)
	}
	publish(t, b, numbered("a", 2))
	e := subscribe(t, b, event.SubscribeOptions{After: &reached[0], Reached: note}).take(1)[0]
	if e.Subject != "a.2" {
		t.Errorf("what is told past where it began is %s, want a.2", e.Subject)
	}
	if reached[1] != reached[0] {
		t.Errorf("a subscription after %v begins past %v", reached[0], reached[1])
	}
}

func since(t *testing.T, b event.Bus) {
	s := subscribe(t, b, event.SubscribeOptions{})
	publish(t, b, numbered("a", 1))
	s.take(1)
	between := time.Now()
	publish(t, b, numbered("a", 2), numbered("a", 3))
	s.take(2)
	for at, want := range map[time.Time][]string{
		between:                       {"a.2", "a.3"},
		between.Add(-1e6 * time.Hour): {"a.1", "a.2", "a.3"},
		between.Add(time.Hour):        nil,
	} {
		last := remove("one", fmt.Sprint("last.", len(want)))
		again := subscribe(t, b, event.SubscribeOptions{Since: at, Filters: []string{"event.id~=^a", "event.id==" + last.Subject}})
		publish(t, b, last)
		want = append(want, last.Subject)
		if d := cmp.Diff(want, subjects(again.take(len(want)))); d != "" {
			t.Errorf("since %v from now: -want +got\n%s", at.Sub(between), d)
		}
	}
}

func beginsOnce(t *testing.T, b event.Bus) {
	_, err := b.Subscribe(t.Context(), event.SubscribeOptions{After: new(event.Cursor), Since: at})
	wantKind(t, err, errdefs.ErrInvalidArgument)
}

func foreignCursor(t *testing.T, b event.Bus) {
	s := subscribe(t, b, event.SubscribeOptions{})
	publish(t, b, numbered("a", 1))
	e := s.take(1)[0]
	for _, c := range []event.Cursor{
		{Epoch: "another", Sequence: e.Sequence},
		{Epoch: "odd / \r\n é%", Sequence: e.Sequence},
		{Epoch: "", Sequence: e.Sequence},
		{Epoch: e.Epoch, Sequence: e.Sequence + 1_000_000},
	} {
		_, err := b.Subscribe(t.Context(), event.SubscribeOptions{After: &c})
		wantKind(t, err, errdefs.ErrOutOfRange)
		var gap *event.Gap
		if !errors.As(err, &gap) || gap.From != c || gap.To.Epoch != e.Epoch {
			t.Errorf("after %v: %#v, want a gap from there", c, err)
			continue
		}
		oldest := subscribe(t, b, event.SubscribeOptions{After: &gap.To, Filters: []string{"event.id==" + e.Subject}})
		if got := oldest.take(1)[0]; got.Sequence != e.Sequence {
			t.Errorf("past the gap after %v event %d is told, want %d", c, got.Sequence, e.Sequence)
		}
	}
}

func ends(t *testing.T, b event.Bus) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := b.Subscribe(ctx, event.SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	publish(t, b, numbered("a", 1))
	var last error
	for _, err := range events {
		cancel()
		last = err
	}
	if last != context.Canceled {
		t.Errorf("the last error is %v, want %v", last, context.Canceled)
	}
	events, err = b.Subscribe(ctx, event.SubscribeOptions{})
	if err == nil {
		for _, e := range events {
			err = e
		}
	}
	wantKind(t, err, context.Canceled)
}

func left(t *testing.T, b event.Bus) {
	events, err := b.Subscribe(t.Context(), event.SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	publish(t, b, numbered("a", 1), numbered("a", 2))
	for range events {
		break
	}
	publish(t, b, numbered("a", 3))
}

func publishEnded(t *testing.T, b event.Bus) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantKind(t, b.Publish(ctx, numbered("a", 1)), context.Canceled)
}
