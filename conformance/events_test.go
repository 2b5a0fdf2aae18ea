package conformance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	eventpb "github.com/containerd/containerd/api/events"
	eventspb "github.com/containerd/containerd/api/services/events/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/events/exchange"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/gantryd/gantry/eventbus"
	"github.com/gantryd/gantry/services/event/eventrpc"
	"github.com/gantryd/gantry/services/rpc"
)

// TestEvents holds the bus, by containerd's own client, to what containerd's own
// exchange does.
func TestEvents(t *testing.T) {
	for name, open := range map[string]func(*testing.T) containerd.EventService{
		"containerd": func(*testing.T) containerd.EventService { return exchange.NewExchange() },
		"gantry":     openEvents,
	} {
		for what, check := range map[string]func(*testing.T, containerd.EventService){
			"an event is told as it was published": eventsAsPublished,
			"filters":                              eventsFiltered,
			"what is wrong is invalid":             eventsWrong,
			"a slow subscriber misses nothing":     eventsSlow,
			"a subscription ends with its context": eventsEnd,
		} {
			t.Run(name+"/"+what, func(t *testing.T) { check(t, open(t)) })
		}
	}
}

func openEvents(t *testing.T) containerd.EventService {
	cfg := eventbus.Default()
	cfg.Root, cfg.Plugins = filepath.Join(t.TempDir(), "eventbus"), nil
	b, err := eventbus.Open(cfg, eventbus.Needs{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	lis, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := rpc.NewServer("events", slog.New(slog.DiscardHandler))
	eventrpc.Register(srv, b)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	conn, err := grpc.NewClient("unix://"+lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); srv.Stop(); <-served })
	return containerd.NewEventServiceFromClient(eventspb.NewEventsClient(conn))
}

// A listener is told from when listen returns.
type listener struct {
	t      *testing.T
	told   <-chan *events.Envelope
	errs   <-chan error
	cancel func()
}

// listen subscribes. containerd's client does not say when that is in force: a
// mark is published until it comes.
func listen(t *testing.T, s containerd.EventService, filters ...string) *listener {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	l := &listener{t: t, cancel: cancel}
	if len(filters) > 0 {
		filters = append(filters, `topic=="/mark/set"`)
	}
	l.told, l.errs = s.Subscribe(ctx, filters...)
	last := fmt.Sprint("mark ", time.Now().UnixNano())
	mark := func(id string) {
		if err := s.Publish(namespaces.WithNamespace(ctx, "marks"), "/mark/set", &eventpb.ContainerDelete{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		mark("begin")
		select {
		case <-l.told:
			mark(last)
			for {
				if d, ok := l.take().(*eventpb.ContainerDelete); ok && d.ID == last {
					return l
				}
			}
		case err := <-l.errs:
			t.Fatalf("Subscribe: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Fatal("nothing is told")
	return nil
}

func (l *listener) next() *events.Envelope {
	l.t.Helper()
	select {
	case e := <-l.told:
		if e != nil {
			return e
		}
		l.t.Fatal("no event")
	case err := <-l.errs:
		l.t.Fatalf("the subscription ended: %v", err)
	case <-time.After(20 * time.Second):
		l.t.Fatal("no event in time")
	}
	return nil
}

func (l *listener) take() any {
	l.t.Helper()
	v, err := typeurl.UnmarshalAny(l.next().Event)
	if err != nil {
		l.t.Fatal(err)
	}
	return v
}

func eventsAsPublished(t *testing.T, s containerd.EventService) {
	l := listen(t, s)
	at := time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC)
	exit := &eventpb.TaskExit{ContainerID: "c", ID: "e", Pid: 7, ExitStatus: 137}
	body, err := typeurl.MarshalAny(exit)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Forward(t.Context(), &events.Envelope{Timestamp: at, Namespace: "two.b_c", Topic: "/tasks/exit", Event: body}); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	if err := s.Publish(namespaces.WithNamespace(t.Context(), "one"), "/tasks/exit", exit); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		ns string
		at time.Time
	}{{"two.b_c", at}, {"one", before}} {
		e := l.next()
		if e.Namespace != want.ns || e.Topic != "/tasks/exit" || e.Timestamp.Before(want.at) || want.at.Equal(at) && !e.Timestamp.Equal(at) ||
			e.Event.GetTypeUrl() != body.GetTypeUrl() || string(e.Event.GetValue()) != string(body.GetValue()) {
			t.Errorf("told %+v, want %+v", e, want)
		}
	}
}

func eventsFiltered(t *testing.T, s containerd.EventService) {
	one := namespaces.WithNamespace(t.Context(), "one")
	publish := func(ctx context.Context, topic string, e events.Event) {
		if err := s.Publish(ctx, topic, e); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		filters []string
		want    string
	}{
		{nil, "c0 c1 c2 end"},
		{[]string{"namespace==one"}, "c0 c2 end"},
		{[]string{`topic~="^/containers/"`}, "c0 c1 end"},
		{[]string{"event.id==c1", "event.container_id==c2"}, "c1 c2 end"},
		{[]string{"event.container_id==c2,namespace!=one"}, "end"},
		{[]string{"event.exit_status==3"}, "end"}, // containerd's fields are strings
	} {
		if c.filters != nil {
			c.filters = append(c.filters, `topic=="/end/now"`)
		}
		l := listen(t, s, c.filters...)
		publish(one, "/containers/delete", &eventpb.ContainerDelete{ID: "c0"})
		publish(namespaces.WithNamespace(t.Context(), "two"), "/containers/delete", &eventpb.ContainerDelete{ID: "c1"})
		publish(one, "/tasks/exit", &eventpb.TaskExit{ContainerID: "c2", ExitStatus: 4})
		publish(one, "/end/now", &eventpb.ContainerDelete{ID: "end"})
		var got []string
		for len(got) == 0 || got[len(got)-1] != "end" {
			switch e := l.take().(type) {
			case *eventpb.ContainerDelete:
				got = append(got, e.ID)
			case *eventpb.TaskExit:
				got = append(got, e.ContainerID)
			}
		}
		if d := cmp.Diff(c.want, strings.Join(got, " ")); d != "" {
			t.Errorf("%q: -want +got\n%s", c.filters, d)
		}
		l.cancel()
	}
}

func eventsWrong(t *testing.T, s containerd.EventService) {
	one := namespaces.WithNamespace(t.Context(), "one")
	body, err := typeurl.MarshalAny(&eventpb.ContainerDelete{ID: "c"})
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range []string{"", "a/b", "/", "/a/", "/a b/c", "/a/*"} {
		if err := s.Publish(one, topic, &eventpb.ContainerDelete{ID: "c"}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Publish to %q: %v", topic, err)
		}
		if err := s.Forward(one, &events.Envelope{Timestamp: time.Now(), Namespace: "one", Topic: topic, Event: body}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Forward to %q: %v", topic, err)
		}
	}
	if err := s.Forward(one, &events.Envelope{Timestamp: time.Now(), Namespace: "a/b", Topic: "/a/b", Event: body}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Forward in a bad namespace: %v", err)
	}
	if err := s.Publish(t.Context(), "/a/b", &eventpb.ContainerDelete{ID: "c"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Publish without a namespace: %v", err)
	}
	_, errs := s.Subscribe(t.Context(), "a=b")
	select {
	case err := <-errs:
		if !errdefs.IsInvalidArgument(kindOf(err)) {
			t.Errorf("Subscribe with a bad filter: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("a bad filter is no error")
	}
}

// kindOf is an error of a subscription, which containerd's client leaves as gRPC
// has it.
func kindOf(err error) error {
	if _, ok := status.FromError(err); ok {
		return errgrpc.ToNative(err)
	}
	return err
}

func eventsSlow(t *testing.T, s containerd.EventService) {
	const publishers, n = 8, 250
	slow, fast := listen(t, s, "namespace==one"), listen(t, s, "namespace==one")
	var all sync.WaitGroup
	for p := range publishers {
		all.Go(func() {
			for i := range n {
				if err := s.Publish(namespaces.WithNamespace(t.Context(), "one"), "/many/events", &eventpb.ContainerDelete{ID: fmt.Sprint(p, ".", i)}); err != nil {
					t.Errorf("Publish: %v", err)
				}
			}
		})
	}
	read := func(l *listener) (ids []string) {
		for len(ids) < publishers*n {
			d, ok := l.take().(*eventpb.ContainerDelete)
			if ok && !strings.HasPrefix(d.ID, "mark") && d.ID != "begin" {
				ids = append(ids, d.ID)
			}
		}
		return ids
	}
	order := read(fast)
	all.Wait()
	if d := cmp.Diff(order, read(slow)); d != "" {
		t.Errorf("a subscriber that began to read at the end was told something else: -fast +slow\n%s", d)
	}
	next := make(map[string]int)
	for _, id := range order {
		p, i, _ := strings.Cut(id, ".")
		if want := fmt.Sprint(next[p]); i != want {
			t.Fatalf("publisher %s: told %s, want %s", p, i, want)
		}
		next[p]++
	}
}

func eventsEnd(t *testing.T, s containerd.EventService) {
	l := listen(t, s)
	l.cancel()
	select {
	case err, open := <-l.errs:
		if open && err != nil && !errors.Is(kindOf(err), context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it does not end")
	}
}
