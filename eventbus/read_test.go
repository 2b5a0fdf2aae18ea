package eventbus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventnats"
)

// openToRead opens a bus whose readers are answered.
func openToRead(t *testing.T, cfg Config) (socket string, b *Bus) {
	t.Helper()
	socket, b = openWith(t, cfg, func(*Bus) {})
	connect(t, socket).Close() // nobody is let in before
	return socket, b
}

func publish(t *testing.T, b event.Publisher, payloads ...event.Payload) {
	t.Helper()
	for _, p := range payloads {
		if err := b.Publish(t.Context(), event.New("one", time.Now(), p)); err != nil {
			t.Fatal(err)
		}
	}
}

// read asks as any NATS client does, and returns what it is told: the last
// message says how it ended.
func (c client) read(t *testing.T, request string) (told []*nats.Msg, status, cursor string) {
	t.Helper()
	inbox := nats.NewInbox()
	sub, err := c.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := c.PublishRequest("gantry.bus.v1.read", inbox, []byte(request)); err != nil {
		t.Fatal(err)
	}
	for {
		m, err := sub.NextMsg(20 * time.Second)
		if err != nil {
			t.Fatalf("read %.200s: after %d messages: %v", request, len(told), err)
		}
		if status := m.Header["gantry-status"]; len(status) == 1 {
			return told, status[0], m.Header["gantry-cursor"][0]
		}
		told = append(told, m)
	}
}

func ids(told []*nats.Msg) (found []string) {
	for _, m := range told {
		found = append(found, m.Header["ce-subject"][0])
	}
	return found
}

// What is on the wire, as a plugin in any language reads it.
func TestAPluginReadsWhatItWasGrantedAndNoMore(t *testing.T) {
	socket, b := openToRead(t, twoPlugins(t))
	network, names := connectAs(t, socket, uidNet), connectAs(t, socket, uidNames)
	others := watch(t, names, inboxes)
	_, status, begin := network.read(t, `{}`)
	if status != "ok" || begin != b.epoch+"/0" {
		t.Fatalf("a read of nothing ends with %s at %s", status, begin)
	}
	publish(t, b, event.ContainerCreate{ID: "c"}, event.TaskExit{ContainerID: "c", ID: "c", ExitStatus: 3}, event.ContentDelete{Digest: "d"})
	for _, request := range []string{
		`{"after":"` + begin + `","wait_ms":200}`,
		`{"since":"2026-01-02T03:04:05Z","wait_ms":200}`,
		`{"after":"` + begin + `","subjects":["gantry.v1.one.tasks.exit"],"filters":["event.exit_status==3","topic==\"/no\""],"wait_ms":200}`,
	} {
		told, status, cursor := network.read(t, request)
		if len(told) != 1 || status != "ok" || cursor != b.epoch+"/3" {
			t.Fatalf("%s: told %d messages, %s, %s", request, len(told), status, cursor)
		}
		m := told[0]
		for key, want := range map[string]string{
			"gantry-subject": "gantry.v1.one.tasks.exit", "gantry-cursor": b.epoch + "/2", "gantry-before": begin,
			"ce-specversion": "1.0", "ce-type": "containerd.events.TaskExit", "ce-subject": "c", "content-type": "application/json",
		} {
			if got := m.Header[key]; len(got) != 1 || got[0] != want {
				t.Errorf("%s: header %s is %q, want %q", request, key, got, want)
			}
		}
		if !strings.Contains(string(m.Data), `"exit_status":3`) {
			t.Errorf("%s: body %s", request, m.Data)
		}
	}
	for _, subject := range []string{"gantry.v1.>", "gantry.v1.*.*.>", "gantry.v1.*.containers.>", "gantry.v1.gate.network", ">", "", "gantry.v1.*.tasks", "gantry.v1..tasks.a"} {
		told, status, _ := network.read(t, fmt.Sprintf(`{"after":%q,"subjects":["gantry.v1.*.tasks.>",%q]}`, begin, subject))
		if len(told) != 0 || status != "denied" {
			t.Errorf("a read of %q: told %d messages and %s, want denied", subject, len(told), status)
		}
	}
	if told, _, _ := names.read(t, `{"after":"`+begin+`"}`); !cmp.Equal(ids(told), []string{"c", "c"}) {
		t.Errorf("another plugin reads %q", ids(told))
	}
	// Its own answers, and none of the other's.
	expect(t, "names", names, drainRead(t, others, 3))
	if told, _, _ := connect(t, socket).read(t, `{"after":"`+begin+`"}`); len(told) != 3 {
		t.Errorf("root reads %q", ids(told))
	}
}

// drainRead takes the n messages of a read from what somebody sees.
func drainRead(t *testing.T, seen chan *nats.Msg, n int) chan *nats.Msg {
	t.Helper()
	for range n {
		select {
		case <-seen:
		case <-time.After(10 * time.Second):
			t.Fatal("not in time")
		}
	}
	return seen
}

func TestAReadThatIsWrongIsInvalid(t *testing.T) {
	socket, b := openToRead(t, twoPlugins(t))
	c := connect(t, socket)
	for _, request := range []string{
		"", "{", "[]", "{} {}", `{"wait":1}`, `{"after":1}`, `{"after":"1"}`, `{"after":"a/-1"}`, `{"since":"yesterday"}`,
		`{"after":"a/1","since":"2026-01-02T03:04:05Z"}`, `{"filters":["a=b"]}`, `{"filters":["event.\"a"]}`, `{"filters":"a"}`,
		`{"name":"a b"}`, `{"name":"gantry.>"}`, `{"max":-1}`, `{"wait_ms":-1}`, `{"wait_ms":1e3}x`, `{"max":99999999999999999999}`,
		`{"filters":[` + strings.Repeat(`"",`, 64) + `""]}`, `{"subjects":[` + strings.Repeat(`"",`, 64) + `""]}`,
		`{"filters":["` + strings.Repeat("a", 64<<10) + `"]}`, "\x00\xff", strings.Repeat("[", 60000),
	} {
		if told, status, _ := c.read(t, request); status != "invalid" || len(told) != 0 {
			t.Errorf("read %.60q: %s, want invalid", request, status)
		}
	}
	// An answer goes to an inbox and nowhere else.
	seen := watch(t, c, "gantry.v1.>")
	for _, reply := range []string{"", "gantry.v1.one.tasks.exit", "$JS.API.STREAM.PURGE.EVENTS", "gantry.bus.v1.read", "_INBOXES.a"} {
		if err := c.PublishRequest("gantry.bus.v1.read", reply, []byte("{}")); err != nil && reply != "" {
			t.Fatal(err)
		}
	}
	c.read(t, `{}`) // comes after them
	expect(t, "root", c, seen)
	if got := lastSequence(t, b); got != 0 {
		t.Errorf("the stream has %d messages", got)
	}
}

func TestAReadWaitsForWhatHappens(t *testing.T) {
	socket, b := openToRead(t, twoPlugins(t))
	c := connect(t, socket)
	_, _, begin := c.read(t, `{}`)
	inbox := nats.NewInbox()
	sub, err := c.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.PublishRequest("gantry.bus.v1.read", inbox, fmt.Appendf(nil, `{"name":"slow","after":%q,"wait_ms":20000,"max":3}`, begin)); err != nil {
		t.Fatal(err)
	}
	for i := range 3 { // each is told when it happens: the next happens then
		publish(t, b, event.ContainerDelete{ID: fmt.Sprint(i)})
		m, err := sub.NextMsg(10 * time.Second)
		if err != nil || m.Header.Get("ce-subject") != fmt.Sprint(i) {
			t.Fatalf("told %v, %v", m, err)
		}
	}
	if m, err := sub.NextMsg(10 * time.Second); err != nil || m.Header.Get("gantry-status") != "ok" || m.Header.Get("gantry-cursor") != b.epoch+"/3" {
		t.Errorf("as much as was asked for ends with %v, %v", m, err)
	}
	// What does not match is passed by.
	if told, status, cursor := c.read(t, fmt.Sprintf(`{"after":%q,"filters":["topic==\"/no\""],"wait_ms":100}`, begin)); len(told) != 0 || status != "ok" || cursor != b.epoch+"/3" {
		t.Errorf("told %d, %s, %s", len(told), status, cursor)
	}
}

func TestOneReadOfANameAtATime(t *testing.T) {
	socket, b := openToRead(t, twoPlugins(t))
	c := connectAs(t, socket, uidNet)
	inbox := nats.NewInbox()
	sub, err := c.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 { // more than there may be of a plugin
		if err := c.PublishRequest("gantry.bus.v1.read", inbox, []byte(`{"name":"twin","wait_ms":20000}`)); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			continue
		}
		m, err := sub.NextMsg(10 * time.Second)
		if err != nil || m.Header.Get("gantry-status") != "unavailable" {
			t.Fatalf("an earlier read of the name ends with %v, %v", m, err)
		}
	}
	publish(t, b, event.TaskExit{ContainerID: "c"})
	if m, err := sub.NextMsg(10 * time.Second); err != nil || m.Header.Get("ce-subject") != "c" {
		t.Errorf("the last read is told %v, %v", m, err)
	}
}

func TestReadsOfAPluginAreLimited(t *testing.T) {
	socket, _ := openToRead(t, twoPlugins(t))
	c := connectAs(t, socket, uidNet)
	inbox := nats.NewInbox()
	sub, err := c.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	for range readsPluginMax + 10 {
		if err := c.PublishRequest("gantry.bus.v1.read", inbox, []byte(`{"wait_ms":20000}`)); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		if m, err := sub.NextMsg(10 * time.Second); err != nil || m.Header.Get("gantry-status") != "unavailable" {
			t.Fatalf("one read too many ends with %v, %v", m, err)
		}
	}
	for name, other := range map[string]client{"another plugin": connectAs(t, socket, uidNames), "root": connect(t, socket)} {
		if _, status, _ := other.read(t, `{}`); status != "ok" {
			t.Errorf("%s: %s", name, status)
		}
	}
}

func TestReadersAreRemembered(t *testing.T) {
	socket, b := openToRead(t, twoPlugins(t))
	network, root := connectAs(t, socket, uidNet), connect(t, socket)
	publish(t, b, event.TaskExit{ContainerID: "c"}, event.ContainerDelete{ID: "c"}, event.ContainerDelete{ID: "d"})
	at := func(n uint64) event.Cursor { return event.Cursor{Epoch: b.epoch, Sequence: n} }
	network.read(t, fmt.Sprintf(`{"name":"n","after":%q,"max":1,"wait_ms":10000}`, at(0)))
	root.read(t, fmt.Sprintf(`{"name":"r","after":%q,"max":3,"wait_ms":10000}`, at(0)))
	root.read(t, fmt.Sprintf(`{"after":%q}`, at(0)))
	if _, status, _ := root.read(t, `{"name":"lost","after":"elsewhere/7"}`); status != "gap" {
		t.Errorf("a cursor of another stream ends with %s", status)
	}
	want := []event.Reader{
		{Plugin: "net", Name: "n", Cursor: at(1), Lag: 2},
		{Plugin: "operator", Name: "lost", Cursor: event.Cursor{Epoch: "elsewhere", Sequence: 7}, Gaps: 1},
		{Plugin: "operator", Name: "r", Cursor: at(3)},
	}
	var got []event.Reader
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline) && !cmp.Equal(want, got); {
		got = b.readers.list(at(3)) // a read leaves when it has answered
		for i := range got {
			if time.Since(got[i].Seen).Abs() > time.Minute {
				t.Errorf("seen %v", got[i].Seen)
			}
			got[i].Seen = time.Time{}
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	for i := range 3 * readersMax {
		network.read(t, fmt.Sprintf(`{"name":"many.%d"}`, i))
	}
	if n := len(b.readers.list(at(3))); n != readersMax+2 {
		t.Errorf("%d readers are remembered, want %d", n, readersMax+2)
	}
}

// The Go client in a plugin's account.
func TestAPluginSubscribes(t *testing.T) {
	socket, b := openToRead(t, twoPlugins(t))
	connect(t, socket) // reads are answered by now
	c, err := eventnats.In(b.server, "plugin.net", b.roles.byName["plugin.net"].secret)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	events, err := c.Subscribe(ctx, event.SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const n = 3 * eventnats.ReadEvents
	for i := range n {
		publish(t, b, event.ContainerDelete{ID: "c"}, event.TaskExit{ContainerID: "c", Pid: uint32(i)})
	}
	told := 0
	for e, err := range events {
		if err != nil || e.Topic != "/tasks/exit" || !strings.Contains(string(e.JSON), fmt.Sprintf(`"pid":%d,`, told)) {
			t.Fatalf("after %d events: %+v, %v", told, e, err)
		}
		if told++; told == n {
			break
		}
	}
	_, err = c.SubscribeTo(ctx, eventnats.Read{Subjects: []string{"gantry.v1.>"}})
	if !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("more than was granted: %v", err)
	}
	if err := c.Publish(ctx, event.New("one", time.Now(), event.TaskExit{ContainerID: "c"})); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("Publish: %v", err)
	}
}
