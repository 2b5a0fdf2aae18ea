package eventbus_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/services/event"
)

var at = time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC)

// eventually tries until there is no error.
func eventually(t testing.TB, what string, try func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if err = try(); err == nil {
			return
		}
		<-time.After(2 * time.Millisecond)
	}
	t.Fatalf("not in time: %s: %v", what, err)
}

// unixDialer is how any NATS client reaches the bus.
type unixDialer string

func (d unixDialer) Dial(string, string) (net.Conn, error) { return net.Dial("unix", string(d)) }

// plugin connects as a client that knows nothing of gantry.
func plugin(t testing.TB, socket string, o ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("nats://gantry", append(o, nats.SetCustomDialer(unixDialer(socket)))...)
	if err != nil {
		t.Fatalf("Connect: %v", err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func TestAPluginSeesCloudEvents(t *testing.T) {
	b := open(t, config(t))
	nc := plugin(t, b.socket)
	sub, err := nc.SubscribeSync("gantry.v1.*.tasks.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	e := event.New("k8s.io", at, event.TaskExit{ContainerID: "c", ID: "c", Pid: 7, ExitStatus: 137, ExitedAt: at})
	e.ID = "taskd/00ff/1"
	other := event.New("k8s.io", at, event.ContainerDelete{ID: "c"})
	for _, e := range []event.Event{other, e} {
		if err := b.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	m, err := sub.NextMsg(10 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := m.Subject, "gantry.v1.k8s%2Eio.tasks.exit"; got != want {
		t.Errorf("subject is %s, want %s", got, want)
	}
	if d := cmp.Diff(`{"container_id":"c","id":"c","pid":7,"exit_status":137,"exited_at":"2026-02-03T04:05:06.000000007Z"}`, string(m.Data)); d != "" {
		t.Errorf("body: -want +got\n%s", d)
	}
	for key, want := range map[string]string{
		"ce-specversion": "1.0", "ce-id": "taskd/00ff/1", "ce-type": "containerd.events.TaskExit",
		"ce-subject": "c", "content-type": "application/json",
	} {
		if got := m.Header.Get(key); got != want {
			t.Errorf("header %s is %q, want %q", key, got, want)
		}
	}
}

// What is published and no event is refused and told to nobody.
func TestWhatIsNoEventIsNotTold(t *testing.T) {
	b := open(t, config(t))
	nc := plugin(t, b.socket)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	events, err := b.Subscribe(ctx, event.SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"one.tasks.exit", "one.tasks", "one.tasks.%zz", "%2E%2E.a.b"} {
		m, err := nc.Request("gantry.bus.v1.publish."+subject, []byte("no event"), 5*time.Second)
		if err != nil || !strings.Contains(string(m.Data), `"kind":"invalid"`) {
			t.Errorf("publish to %s is answered with %v, %v", subject, m, err)
		}
	}
	if err := b.Publish(ctx, event.New("one", at, event.ContainerDelete{ID: "c"})); err != nil {
		t.Fatal(err)
	}
	for e, err := range events {
		if err != nil || e.Subject != "c" || e.Sequence != 1 {
			t.Errorf("told %+v, %v", e, err)
		}
		break
	}
}

// A request to a gate is answered by its plugin and kept nowhere.
func TestGatesAreNotEvents(t *testing.T) {
	b := open(t, config(t))
	nc := plugin(t, b.socket)
	if _, err := nc.Subscribe("gantry.v1.gate.network", func(m *nats.Msg) { _ = m.Respond([]byte("yes")) }); err != nil {
		t.Fatal(err)
	}
	m, err := nc.Request("gantry.v1.gate.network", nil, 5*time.Second)
	if err != nil || string(m.Data) != "yes" {
		t.Errorf("the gate says %q, %v", m.Data, err)
	}
}

func TestABusThatIsNotThereIsUnavailableAtOnceAndFoundSoon(t *testing.T) {
	cfg, socket := config(t), filepath.Join(t.TempDir(), "nats.sock")
	c := dial(t, socket)
	e := event.New("one", at, event.ContainerDelete{ID: "c"})
	publish := func() error { return c.Publish(t.Context(), e) }
	isAway := func() {
		t.Helper()
		began := time.Now()
		if err := publish(); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("Publish: %v, want %v", err, errdefs.ErrUnavailable)
		}
		if _, err := c.Subscribe(t.Context(), event.SubscribeOptions{}); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("Subscribe: %v, want %v", err, errdefs.ErrUnavailable)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("it took %v to say so", d)
		}
	}
	isAway()
	for range 3 {
		b := openAt(t, cfg, socket)
		back := time.Now()
		eventually(t, "the bus", publish)
		if d := time.Since(back); d > 2*time.Second {
			t.Errorf("it took %v to find the bus", d)
		}
		events, err := c.Subscribe(t.Context(), event.SubscribeOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			for _, err := range events {
				ended <- err
			}
		}()
		b.stop()
		if err := <-ended; !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("the subscription ended with %v, want %v", err, errdefs.ErrUnavailable)
		}
		isAway()
	}
}

func TestAnEventThatIsTooLargeIsInvalid(t *testing.T) {
	b := open(t, config(t))
	c := dial(t, b.socket)
	e := event.New("one", at, event.ImageCreate{Name: string(make([]byte, 300<<10))}) // six times that in JSON
	eventually(t, "a connection", func() error {
		return c.Publish(t.Context(), event.New("one", at, event.ContainerDelete{ID: "c"}))
	})
	for name, p := range map[string]event.Publisher{"engine": b, "nats": c} {
		if err := p.Publish(t.Context(), e); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: Publish: %v, want %v", name, err, errdefs.ErrInvalidArgument)
		}
	}
}

func TestEventsPastTheLimitAreOutOfRange(t *testing.T) {
	cfg := config(t)
	cfg.RetainMiB = 4
	b := open(t, cfg)
	slow, err := b.Subscribe(t.Context(), event.SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e := event.Event{Namespace: "one", Topic: "/a/b", Type: "t", Raw: make([]byte, 900<<10)}
	for i := range 12 {
		e.Time = at.Add(time.Duration(i))
		if err := b.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	var last error
	for _, err := range slow {
		last = err
	}
	var gap *event.Gap
	if !errors.As(last, &gap) || !errors.Is(last, errdefs.ErrOutOfRange) || gap.From.Sequence != 0 || gap.To.Sequence < 4 {
		t.Fatalf("the subscription ended with %v, want a gap from 0", last)
	}
	for name, o := range map[string]event.SubscribeOptions{"past the gap": {After: &gap.To}, "since long ago": {Since: at}} {
		kept, err := b.Subscribe(t.Context(), o)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for e, err := range kept {
			if err != nil || e.Sequence != gap.To.Sequence+1 {
				t.Errorf("%s: told %d, %v, want %d", name, e.Sequence, err, gap.To.Sequence+1)
			}
			break
		}
	}
}
