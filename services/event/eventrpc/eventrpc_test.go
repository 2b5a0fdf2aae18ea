package eventrpc

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	eventpb "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/events/v1"
	shimpb "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventtest"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

func TestMemoryAcrossTheWire(t *testing.T) {
	eventtest.Run(t, func(t *testing.T) event.Bus {
		return NewClient(pipe(t, eventtest.NewMemory()))
	})
}

func pipe(t *testing.T, b event.Bus) *grpc.ClientConn {
	return rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { Register(r, b) })
}

var at = timestamppb.New(time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC))

func anyOf(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := typeurl.MarshalAnyToProto(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// A client of containerd's sees what another client of containerd's sent.
func TestContainerdsClientsSeeEnvelopesAsTheyWere(t *testing.T) {
	conn := pipe(t, eventtest.NewMemory())
	c := events.NewEventsClient(conn)
	stream, err := c.Subscribe(t.Context(), &events.SubscribeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	withMore := &eventpb.TaskExit{ContainerID: "c", ID: "c", Pid: 1, ExitStatus: 1, ExitedAt: at}
	withMore.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 1}) // field 127
	for _, a := range []*anypb.Any{
		anyOf(t, &eventpb.TaskExit{ContainerID: "c", ID: "c", Pid: 1, ExitStatus: 137, ExitedAt: at}),
		anyOf(t, &eventpb.ContentCreate{Digest: "sha256:00", Size: 1 << 60}),
		anyOf(t, &eventpb.TaskCreate{ContainerID: "c", Bundle: "/b", Rootfs: []*types.Mount{{Type: "overlay", Options: []string{"a=b"}}}, IO: &eventpb.TaskIO{Terminal: true}}),
		anyOf(t, &eventpb.ContainerCreate{ID: "c", Runtime: &eventpb.ContainerCreate_Runtime{
			Name: "r", Options: anyOf(t, &eventpb.TaskOOM{ContainerID: "nested"})}}),
		anyOf(t, &eventpb.ContainerCreate{ID: "c", Runtime: &eventpb.ContainerCreate_Runtime{
			Name: "r", Options: &anypb.Any{TypeUrl: "nobody.knows", Value: []byte{1}}}}),
		anyOf(t, withMore),
		{TypeUrl: "nobody.knows", Value: []byte{0, 1}},
		{TypeUrl: "containerd.events.TaskExit", Value: []byte{0xff}}, // not what it says it is
		{TypeUrl: "type.googleapis.com/nobody.knows"},
	} {
		sent := &types.Envelope{Timestamp: at, Namespace: "one", Topic: "/a/b", Event: a}
		if _, err := c.Forward(t.Context(), &events.ForwardRequest{Envelope: sent}); err != nil {
			t.Fatalf("Forward(%v): %v", a, err)
		}
		got, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got.ProtoReflect().SetUnknown(nil)
		if d := cmp.Diff(sent, got, protocmp.Transform()); d != "" {
			t.Errorf("-sent +received\n%s", d)
		}
	}
}

func TestContainerdsErrors(t *testing.T) {
	c := events.NewEventsClient(pipe(t, eventtest.NewMemory()))
	a := anyOf(t, &eventpb.TaskOOM{ContainerID: "c"})
	one := rpc.WithScope(t.Context(), namespace.Scope{Name: "one"})
	for name, call := range map[string]struct {
		kind error
		fn   func() error
	}{
		"publish without a namespace": {errdefs.ErrFailedPrecondition, func() error {
			_, err := c.Publish(t.Context(), &events.PublishRequest{Topic: "/a/b", Event: a})
			return err
		}},
		"publish to a bad topic": {errdefs.ErrInvalidArgument, func() error {
			_, err := c.Publish(one, &events.PublishRequest{Topic: "/a", Event: a})
			return err
		}},
		"forward without a time": {errdefs.ErrInvalidArgument, func() error {
			_, err := c.Forward(t.Context(), &events.ForwardRequest{Envelope: &types.Envelope{Namespace: "one", Topic: "/a/b", Event: a}})
			return err
		}},
		"forward of nothing": {errdefs.ErrInvalidArgument, func() error {
			_, err := c.Forward(t.Context(), &events.ForwardRequest{})
			return err
		}},
		"subscribe with a bad filter": {errdefs.ErrInvalidArgument, func() error {
			s, err := c.Subscribe(t.Context(), &events.SubscribeRequest{Filters: []string{"a=b"}})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		}},
	} {
		if err := call.fn(); !errdefsIs(err, call.kind) {
			t.Errorf("%s: got %v, want kind %v", name, err, call.kind)
		}
	}
	if _, err := c.Publish(one, &events.PublishRequest{Topic: "/a/b", Event: a}); err != nil {
		t.Errorf("Publish: %v", err)
	}
}

func errdefsIs(err, kind error) bool { return errdefs.Resolve(err) == kind }

func TestShimsForwardOverTTRPC(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	bus := eventtest.NewMemory()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- ServeShims(ctx, lis, bus) }()

	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	c := shimpb.NewTTRPCEventsClient(client)
	env := &types.Envelope{Timestamp: at, Namespace: "one", Topic: "/tasks/exit", Event: anyOf(t, &eventpb.TaskExit{ContainerID: "c", ID: "c", ExitStatus: 3, ExitedAt: at})}
	for range 2 { // a shim that had no answer tells it again
		if _, err := c.Forward(t.Context(), &shimpb.ForwardRequest{Envelope: env}); err != nil {
			t.Fatalf("Forward: %v", err)
		}
	}
	_, err = c.Forward(t.Context(), &shimpb.ForwardRequest{Envelope: &types.Envelope{Timestamp: at, Namespace: "one", Topic: "bad"}})
	if err = errgrpc.ToNative(err); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Forward of a bad topic: %v", err)
	}
	got := bus.Events()
	if len(got) != 1 || got[0].Subject != "c" || got[0].ID == "" || string(got[0].JSON) != `{"container_id":"c","id":"c","exit_status":3,"exited_at":"2026-02-03T04:05:06.000000007Z"}` {
		t.Errorf("the bus has %+v", got)
	}
	cancel()
	if err := <-served; err != context.Canceled {
		t.Errorf("ServeShims: %v", err)
	}
}

func TestAGapKeepsItsEndsAcrossTheWire(t *testing.T) {
	bus := eventtest.NewMemory()
	c := NewClient(pipe(t, bus))
	late, err := c.Subscribe(t.Context(), event.SubscribeOptions{After: &event.Cursor{Epoch: "b/a d", Sequence: 1}})
	var gap *event.Gap
	if !errors.As(err, &gap) || gap.From != (event.Cursor{Epoch: "b/a d", Sequence: 1}) || gap.To.Sequence != 0 {
		t.Fatalf("Subscribe: %v, %v", late, err)
	}
	late, err = c.Subscribe(t.Context(), event.SubscribeOptions{After: &gap.To, Filters: []string{"event.id==b"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b"} {
		e := event.New("one", time.Now(), event.ContainerDelete{ID: id})
		if err := bus.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	for e, err := range late {
		if err != nil || e.Sequence != 2 {
			t.Fatalf("told %+v, %v", e, err)
		}
		break
	}
	bus.Forget()
	at := event.Cursor{Epoch: gap.To.Epoch}
	_, err = c.Subscribe(t.Context(), event.SubscribeOptions{After: &at})
	if !errors.As(err, &gap) || *gap != (event.Gap{From: at, To: event.Cursor{Epoch: at.Epoch, Sequence: 2}}) {
		t.Errorf("Subscribe to what was forgotten: %v", err)
	}
}

func TestHeadersThatDoNotParseAreInvalid(t *testing.T) {
	c := events.NewEventsClient(pipe(t, eventtest.NewMemory()))
	for _, header := range [][]string{
		{headerAfter, ""}, {headerAfter, "a"}, {headerAfter, "a/-1"}, {headerAfter, "a/1/2"}, {headerAfter, "%zz/1"},
		{headerAfter, "a/18446744073709551616"}, {headerSince, "yesterday"}, {headerSince, ""},
		{headerSince, "2026-02-03T04:05:06Z", headerAfter, "a/1"},
	} {
		stream, err := c.Subscribe(metadata.AppendToOutgoingContext(t.Context(), header...), &events.SubscribeRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if !errdefsIs(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %v", header, err)
		}
	}
}

func FuzzEnvelope(f *testing.F) {
	for _, m := range []proto.Message{&eventpb.TaskExit{ContainerID: "c", ExitedAt: at}, &eventpb.ImageCreate{Name: "n", Labels: map[string]string{"a": "b"}}} {
		a, err := typeurl.MarshalAnyToProto(m)
		if err != nil {
			f.Fatal(err)
		}
		b, err := proto.Marshal(&types.Envelope{Timestamp: at, Namespace: "one", Topic: "/a/b", Event: a})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var env types.Envelope
		if proto.Unmarshal(b, &env) != nil {
			return
		}
		e := fromEnvelope(&env)
		again, err := toEnvelope(e)
		if err != nil {
			t.Fatalf("toEnvelope(%+v): %v", e, err)
		}
		if d := cmp.Diff(e, fromEnvelope(again)); d != "" {
			t.Errorf("there and back: -there +back\n%s", d)
		}
	})
}

// JSON that is not what its type says ends nobody's subscription.
func TestAnEventThatIsNotOfItsTypeIsTold(t *testing.T) {
	e := event.Event{ID: "x", Namespace: "one", Topic: "/tasks/exit", Type: "containerd.events.TaskExit", JSON: []byte(`{"exit_status":"none"}`)}
	w, err := new(told).of(e)
	if err != nil || len(w.bytes) == 0 {
		t.Errorf("it goes over the wire as %d bytes, %v", len(w.bytes), err)
	}
}
