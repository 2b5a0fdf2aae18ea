package eventnats

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/services/event"
)

func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"name":"a","after":"0123456789abcdef/7","filters":["a==b"],"subjects":["gantry.v1.*.tasks.>"],"max":3,"wait_ms":100}`,
		`{"since":"2026-02-03T04:05:06.7Z","max":1e2}`, `{"after":"a/1","since":"2026-02-03T04:05:06Z"}`, `[]`, `null`, `{"max":-1}`, `{} {}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := fromRequest(b)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("fromRequest(%q): %v", b, err)
			}
			return
		}
		if r.Max < 1 || r.Max > ReadEvents || r.Wait < 0 || r.Wait > ReadWait {
			t.Errorf("fromRequest(%q): %+v is beyond the limits", b, r)
		}
		again, err := toRequest(r)
		if err != nil {
			return // it is longer than it came: what JSON escapes
		}
		if back, err := fromRequest(again); err != nil || !cmp.Equal(r, back) {
			t.Errorf("fromRequest(%s): %+v, %v, want %+v", again, back, err, r)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add("ok", "a/1", "a/0", "gantry.v1.one.tasks.exit", "2026-02-03T04:05:06Z", []byte("{}"))
	f.Add("gap", "a/1", "/0", "", "", []byte(nil))
	f.Add("", "a/1", "a/0", "gantry.v1.%2E.a.b", "", []byte("x"))
	f.Add("else", "a", "a/-1", "", "", []byte("x"))
	f.Fuzz(func(t *testing.T, status, cursor, before, subject, at string, body []byte) {
		m := nats.NewMsg("_INBOX.x")
		m.Data = body
		m.Header = nats.Header{headerCursor: {cursor}, headerBefore: {before}, headerSubject: {subject}, "ce-id": {"x"}, "ce-time": {at}}
		if status != "" {
			m.Header[headerStatus] = []string{status}
		}
		a, err := fromAnswer(m)
		if err == nil && a.end != (status != "") || err == nil && !a.end && a.event.Check() != nil {
			t.Errorf("fromAnswer: %+v", a)
		}
	})
}

func TestTheEndOfAReadIsToldAsItWas(t *testing.T) {
	at, before := event.Cursor{Epoch: "e", Sequence: 7}, event.Cursor{Epoch: "e", Sequence: 3}
	a, err := fromAnswer(toEnd(at, before, nil, "_INBOX.x"))
	if err != nil || !a.end || a.err != nil || a.at != at || a.before != before {
		t.Errorf("ok is told as %+v, %v", a, err)
	}
	for _, kind := range []error{errdefs.ErrInvalidArgument, errdefs.ErrPermissionDenied, errdefs.ErrUnavailable, errdefs.ErrInternal} {
		a, err := fromAnswer(toEnd(at, before, fmt.Errorf("a reason: %w", kind), "_INBOX.x"))
		if err != nil || !errors.Is(a.err, kind) || a.err.Error() != "a reason: "+kind.Error() {
			t.Errorf("%v is told as %v, %v", kind, a.err, err)
		}
	}
	if a, err := fromAnswer(toEnd(at, before, errors.New("a reason"), "_INBOX.x")); err != nil || !errors.Is(a.err, errdefs.ErrInternal) {
		t.Errorf("an error of no kind is told as %v, %v", a.err, err)
	}
	want := &event.Gap{From: before, To: at}
	a, err = fromAnswer(toEnd(event.Cursor{}, event.Cursor{}, fmt.Errorf("late: %w", want), "_INBOX.x"))
	var got *event.Gap
	if err != nil || !errors.As(a.err, &got) || *got != *want {
		t.Errorf("a gap is told as %v, %v", a.err, err)
	}
}

// A message that is lost between the bus and its reader is not passed over.
func TestAReaderSeesWhatIsLostOnTheWay(t *testing.T) {
	s, err := server.NewServer(&server.Options{DontListen: true, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer s.Shutdown()
	b, err := In(s, "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	place := func(n uint64) event.Cursor { return event.Cursor{Epoch: "e", Sequence: n} }
	told := func(n, before uint64, inbox string) *nats.Msg {
		e := event.New("one", time.Now(), event.ContainerDelete{ID: "c"})
		e.ID, e.Epoch, e.Sequence = fmt.Sprint("x/", n), "e", n
		return toRead(e, place(before), "node", inbox)
	}
	reads := 0
	sub, err := b.nc.Subscribe(ReadSubject, func(m *nats.Msg) {
		reads++
		answers := []*nats.Msg{toEnd(place(1), place(1), nil, m.Reply)}
		if reads == 2 { // the third event does not arrive
			answers = []*nats.Msg{told(2, 1, m.Reply), told(4, 3, m.Reply), toEnd(place(4), place(4), nil, m.Reply)}
		}
		for _, a := range answers {
			_ = b.nc.PublishMsg(a)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	events, err := b.Subscribe(ctx, event.SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var got []uint64
	for e, err := range events {
		if err != nil {
			if !errors.Is(err, errdefs.ErrUnavailable) {
				t.Errorf("it ended with %v", err)
			}
			break
		}
		got = append(got, e.Sequence)
	}
	if d := cmp.Diff([]uint64{2}, got); d != "" {
		t.Errorf("-want +told\n%s", d)
	}
	if err := sub.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := b.Subscribe(ctx, event.SubscribeOptions{}); !errors.Is(err, errdefs.ErrUnavailable) || time.Since(began) > 2*time.Second {
		t.Errorf("nobody answers reads: %v after %v", err, time.Since(began))
	}
}
