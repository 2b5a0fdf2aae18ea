package eventbus

import (
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/services/event"
)

// What a plugin reads does not end at an event that is large.
func TestAPluginReadsALargeEvent(t *testing.T) {
	socket, b := openToRead(t, twoPlugins(t))
	names := connectAs(t, socket, uidNames)
	publish(t, b, event.ContainerUpdate{ID: "c", Labels: map[string]string{"x": strings.Repeat("x", 200_000)}}, event.ContainerCreate{ID: "d"})
	told, status, _ := names.read(t, `{"since":"2026-01-02T03:04:05Z","wait_ms":200}`)
	if status != "ok" || len(told) != 2 || len(told[0].Data) < 200_000 {
		t.Fatalf("a read ends with %s after %d messages", status, len(told))
	}
}

// An event that nobody could be told of is refused: in the stream it would be
// the end of every subscription.
func TestWhatCannotBeToldIsRefused(t *testing.T) {
	socket, b := openAs(t, "contentd")
	c := connect(t, socket, nats.CustomInboxPrefix("_INBOX.answer.contentd"))
	for name, h := range map[string][2]string{
		"year 10000":    {"ce-time", "9999-12-31T23:59:59-23:00"},
		"year -1":       {"ce-time", "0000-01-01T00:00:00+23:00"},
		"no UTF-8":      {"ce-type", "%FF%FE"},
		"another's id":  {"ce-id", "taskd/0123/1"},
		"no JSON":       {"", "{"},
		"JSON and more": {"", "{}{}"},
	} {
		t.Run(name, func(t *testing.T) {
			before := lastSequence(t, b)
			m := nats.NewMsg("gantry.bus.v1.publish.one.content.delete")
			m.Header = nats.Header{
				"ce-id": {"contentd/0123/1"}, "ce-time": {"2026-01-02T03:04:05Z"},
				"ce-type": {"containerd.events.ContentDelete"}, "content-type": {"application/json"},
			}
			m.Data = []byte(`{"digest":"d"}`)
			if h[0] != "" {
				m.Header[h[0]] = []string{h[1]}
			} else {
				m.Data = []byte(h[1])
			}
			answer, err := c.RequestMsg(m, 10*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(answer.Data), `"invalid"`) || lastSequence(t, b) != before {
				t.Errorf("it is answered %s", answer.Data)
			}
		})
	}
}

// Reads that take the place of one another are limited like others while those
// before them have not ended.
func TestReadsOfOneNameAreLimited(t *testing.T) {
	var r readers
	for n := range 3 * readsPluginMax {
		_, _, err := r.enter(t.Context(), "net", "same")
		if refused := errdefs.IsUnavailable(err); refused != (n >= 2*readsPluginMax) {
			t.Fatalf("read %d: %v", n, err)
		}
	}
}
