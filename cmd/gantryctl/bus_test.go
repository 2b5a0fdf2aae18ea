package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/suite"
)

// A reporter is a bus that says what it is.
type reporter event.Status

func (r reporter) Status(context.Context) (event.Status, error) { return event.Status(r), nil }

// A lobby is who waits.
type lobby []gate.Wait

func (l lobby) Waiting(context.Context) ([]gate.Wait, error) { return l, nil }

// busDesk is a desk in front of a bus with plugins, and daemons with outboxes.
func busDesk(t *testing.T) *desk {
	d := newDesk(t)
	now := time.Now()
	d.own = &operator{Closer: io.NopCloser(nil), bus: reporter{
		Stream: event.Stream{
			Epoch: "00ff00ff", First: 11, Last: 3052, Bytes: 1_234_567, BytesMax: 64 << 20,
			AgeMax: 72 * time.Hour, Oldest: now.Add(-125 * time.Minute),
		},
		Readers: []event.Reader{
			{Plugin: "dnsd", Name: "names", Cursor: event.Cursor{Epoch: "00ff00ff", Sequence: 3052}, Seen: now.Add(-time.Second)},
			{Plugin: "evil\x1b[2J", Name: "a\nb", Cursor: event.Cursor{Epoch: "00ff00ff", Sequence: 7}, Lag: 3045, Gaps: 2, Seen: now.Add(-49 * time.Hour)},
		},
		Gates: []event.Gate{
			{Name: "mesh", Plugins: []string{"meshd"}},
			{Name: "network", Plugins: []string{"netd", "operator"}, Present: true},
		},
		Peers:       []event.Peer{{Name: "dnsd", Connections: 1, Subscriptions: 2}, {Name: "operator", Connections: 3, Pending: 4096}},
		Connections: 4, ConnectionsMax: 1024,
	}, lobby: lobby{
		{Gate: "audit", Namespace: "default", Container: "web", Since: now},
		{Gate: "network", Namespace: "default", Container: "a", Since: now.Add(-3 * time.Minute)},
		{Gate: "network", Namespace: "k8s.io", Container: "b", Since: now.Add(-2 * time.Minute)},
		{Gate: "network", Namespace: "default", Container: "c", Since: now.Add(-time.Minute)},
		{Gate: "network", Namespace: "default", Container: "d", Since: now},
	}}
	d.ask = func(_ context.Context, socket string) (answer, error) {
		var a answer
		switch strings.TrimSuffix(filepath.Base(socket), ".sock") {
		case suite.Contentd:
			a.Outbox = &suite.Outbox{}
		case suite.Snapshotd:
			a.Outbox = &suite.Outbox{Depth: 117, Oldest: now.Add(-3 * time.Hour), Away: now.Add(-179 * time.Minute)}
		case suite.Imaged:
			a.Outbox = &suite.Outbox{Depth: 1, Oldest: now}
		case suite.Taskd:
			return a, fmt.Errorf("nobody listens on %s", socket)
		}
		return a, nil
	}
	return d
}

// waited stands for times, which differ from run to run.
var waited = regexp.MustCompile(`\([0-9ms]+\)`)

func TestBusStatus(t *testing.T) {
	d := busDesk(t)
	golden(t, "bus-status.txt", ago.ReplaceAllString(d.want("--sockets", "/run/gantry", "bus", "status"), "0s ago"))
	var sheet busSheet
	if err := json.Unmarshal([]byte(d.want("bus", "status", "-o", "json")), &sheet); err != nil {
		t.Fatal(err)
	}
	if sheet.Stream.Kept != 3042 || len(sheet.Readers) != 2 || sheet.Readers[1].Cursor != "00ff00ff/7" || len(sheet.Outboxes) != 4 {
		t.Errorf("as JSON it is %+v", sheet)
	}
	golden(t, "gate-ls.txt", waited.ReplaceAllString(d.want("gate", "ls"), "(0s)"))
	var rows []gateRow
	if err := json.Unmarshal([]byte(d.want("gate", "ls", "-o", "json")), &rows); err != nil || len(rows) != 3 || len(rows[2].Waiting) != 4 {
		t.Errorf("as JSON gate ls is %+v, %v", rows, err)
	}
}

// Of a bus that is away what waits for it is still shown.
func TestBusStatusOfABusThatIsAway(t *testing.T) {
	d := busDesk(t)
	d.own = nil
	out, errs, code := d.ctl("bus", "status")
	if code != 1 || !strings.Contains(out, "117") || !strings.Contains(errs, "nobody answers") || strings.Count(errs, "\n") != 1 {
		t.Errorf("bus status = %d\n%s%s", code, out, errs)
	}
	out, _, code = d.ctl("bus", "status", "-o", "json")
	if code != 1 || !json.Valid([]byte(out)) {
		t.Errorf("bus status -o json = %d\n%s", code, out)
	}
	d.fail(1, "nobody answers", "gate", "ls")
}

func TestBusStatusOfAnEmptyBus(t *testing.T) {
	d := busDesk(t)
	d.own.bus = reporter{Stream: event.Stream{Epoch: "00ff00ff", First: 1, BytesMax: 64 << 20, AgeMax: time.Hour}}
	d.own.lobby = lobby{}
	d.ask = func(context.Context, string) (answer, error) { return answer{}, errors.New("nobody listens here") }
	if out := d.want("bus", "status"); !strings.Contains(out, "none are kept; the next is 1") || strings.Contains(out, "READER") {
		t.Errorf("it prints\n%s", out)
	}
	if out := d.want("gate", "ls", "-o", "json"); out != "[]\n" {
		t.Errorf("gate ls -o json prints %q", out)
	}
	var sheet map[string]any
	if err := json.Unmarshal([]byte(d.want("bus", "status", "-o", "json")), &sheet); err != nil {
		t.Fatal(err)
	}
	help := d.want("bus", "status", "--help")
	for key := range sheet {
		if !strings.Contains(help, key) {
			t.Errorf("field %s is not in the help", key)
		}
	}
}
