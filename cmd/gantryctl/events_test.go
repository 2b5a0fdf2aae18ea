package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventtest"
)

// tell publishes that containers were made, and returns the cursors.
func (d *desk) tell(ids ...string) (at []string) {
	d.t.Helper()
	bus := d.client.Events.(*eventtest.Memory)
	for _, id := range ids {
		e := event.New("default", time.Now(), event.ContainerCreate{ID: id, Image: "demo"})
		e.ID, e.Trace = "taskd/1/"+id, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		if err := bus.Publish(d.t.Context(), e); err != nil {
			d.t.Fatal(err)
		}
		all := bus.Events()
		last := all[len(all)-1]
		at = append(at, event.Cursor{Epoch: last.Epoch, Sequence: last.Sequence}.String())
	}
	return at
}

// rows reads what events -o json printed.
func rows(t *testing.T, out string) (all []eventRow, gaps int) {
	t.Helper()
	for line := range strings.Lines(out) {
		var both struct {
			eventRow
			Gap *gapEnds `json:"gap"`
		}
		if err := json.Unmarshal([]byte(line), &both); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if both.Gap != nil {
			gaps++
		} else {
			all = append(all, both.eventRow)
		}
	}
	return all, gaps
}

func subjects(all []eventRow) (s string) {
	for _, r := range all {
		s += r.Subject + " "
	}
	return strings.TrimSpace(s)
}

func TestEventsSince(t *testing.T) {
	d := newDesk(t)
	if out := d.want("events", "--since", "1h"); out != "" {
		t.Errorf("of nothing it prints %q", out)
	}
	at := d.tell("a", "b", "c")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--since", "1h"}, "a b c"},
		{[]string{"--since", "2026-01-01T00:00:00Z"}, "a b c"},
		{[]string{"--since", at[0]}, "b c"},
		{[]string{"--since", at[2]}, ""},
		{[]string{"--since", "0s"}, ""},
		{[]string{"--follow=false"}, "a b c"},
		{[]string{"--since", "1h", "-n", "default"}, "a b c"},
		{[]string{"--since", "1h", "-n", "other"}, ""},
		{[]string{"--since", "1h", "--filter", "event.id==a", "--filter", "event.id==b"}, "a b"},
		{[]string{"--since", "1h", "--filter", `topic=="/none/here"`}, ""},
	} {
		all, gaps := rows(t, d.want(append([]string{"events", "-o", "json"}, c.args...)...))
		if got := subjects(all); got != c.want || gaps != 0 {
			t.Errorf("events %v prints %q and %d gaps, want %q", c.args, got, gaps, c.want)
		}
	}
	out := d.want("events", "--since", at[1], "-o", "json")
	var got map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	delete(got, "time")
	want := map[string]any{
		"id": "taskd/1/c", "sequence": 3.0, "cursor": at[2], "namespace": "default", "topic": "/containers/create", "subject": "c",
		"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"type":        "containerd.events.ContainerCreate", "payload": map[string]any{"id": "c", "image": "demo", "runtime": got["payload"].(map[string]any)["runtime"]},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("as JSON an event is (-want +got):\n%s", diff)
	}
	_, fields, _ := strings.Cut(d.want("events", "--help"), "Fields with -o json")
	for key := range got {
		if !strings.Contains(fields, key) {
			t.Errorf("field %s is not in the help", key)
		}
	}
	if out := d.want("events", "--since", at[1]); !strings.HasPrefix(out, time.Now().Format("2006-")) || strings.Count(out, "\n") != 1 {
		t.Errorf("for people it prints %q", out)
	}
}

func TestEventsSayGaps(t *testing.T) {
	d := newDesk(t)
	at := d.tell("a", "b")
	d.client.Events.(*eventtest.Memory).Forget()
	d.tell("c")
	for _, since := range []string{at[0], "another/7"} {
		out, errs, code := d.ctl("events", "--since", since, "-o", "json")
		all, gaps := rows(t, out)
		if code != 0 || subjects(all) != "c" || gaps != 1 || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "no longer kept") {
			t.Errorf("events --since %s = %d, %s%s", since, code, out, errs)
		}
		out, errs, code = d.ctl("events", "--since", since)
		if code != 0 || strings.Count(out, "\n") != 1 || !strings.Contains(errs, "a gap: events behind "+since) {
			t.Errorf("events --since %s = %d, %s%s", since, code, out, errs)
		}
	}
	if out := d.want("events", "--since", "1h", "-o", "json"); strings.Count(out, "\n") != 1 {
		t.Errorf("since a time before what is kept it prints %s", out)
	}
}

func TestEventsSinceMistakes(t *testing.T) {
	d := newDesk(t)
	for _, since := range []string{"yesterday", "-1h", "2999-01-01T00:00:00Z", "e/", "e/x", "/1", "1", "e/-1", "a b/1/2"} {
		d.fail(2, "--since", "events", "--since", since)
	}
	d.fail(1, "filter", "events", "--since", "1h", "--filter", "topic==")
}

func TestEventsSinceAreFollowed(t *testing.T) {
	d := newDesk(t)
	d.tell("a", "b")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &listener{heard: make(chan struct{}), until: `"subject":"c"`, end: cancel}
	n := &node{
		dial:   func(context.Context, string) (*client.Client, error) { return d.client, nil },
		getenv: func(string) string { return "" }, unnotify: func() {},
	}
	go func() {
		<-out.heard
		d.tell("c")
	}()
	if code := execute(ctx, n, []string{"events", "--since", "1h", "-f", "--rate", "-o", "json"}, strings.NewReader(""), out, out); code != 0 {
		t.Errorf("events = %d", code)
	}
	if all, _ := rows(t, out.String()); subjects(all) != "a b c" {
		t.Errorf("it prints %s", out)
	}
}

func TestEventsOfOthersCannotMoveTheCursor(t *testing.T) {
	d := newDesk(t)
	d.tell("c")
	e := event.Event{Namespace: "default", Topic: "/a/b", Time: time.Now(), Type: "t", JSON: []byte(`{"name":"x\u001b[2J\ny"}`)}
	if err := d.client.Events.Publish(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if out := d.want("events", "--since", "1h"); strings.ContainsAny(out, "\x1b") || strings.Count(out, "\n") != 2 {
		t.Errorf("it prints %q", out)
	}
}

func TestRate(t *testing.T) {
	var b bytes.Buffer
	r := newRate(&b, func() int { return 20 })
	for range 50 {
		r.add()
	}
	r.tell(2 * time.Second)
	r.add()
	r.tell(time.Second)
	r.clear()
	r.clear()
	want := fmt.Sprintf("%[1]s50 events, 25/s%[1]s%[1]s51 events, 1/s%[1]s", clearLine)
	if got := b.String(); got != want {
		t.Errorf("it writes %q, want %q", got, want)
	}
	r.run()()
	var none *rate
	none.add()
	none.clear()
}
