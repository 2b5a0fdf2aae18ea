package eventbus_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/events/v1"
	shimpb "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/event/eventrpc"
	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

// A way is how an event comes to the bus.
type way func(ctx context.Context, ns, topic string, payload []byte) error

// ways are all that there are.
func ways(t *testing.T, b running) map[string]way {
	t.Helper()
	conn := rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { eventrpc.Register(r, b) })
	stock := events.NewEventsClient(conn)
	shims := forwardToShims(t, b)
	overNATS := dial(t, b.socket)
	eventually(t, "a connection", func() error {
		return overNATS.Publish(t.Context(), event.New("first", at, event.ContainerDelete{ID: "c"}))
	})
	payloadOf := func(b []byte) *anypb.Any { return &anypb.Any{TypeUrl: "t", Value: b} }
	envelope := func(ns, topic string, b []byte) *types.Envelope {
		return &types.Envelope{Timestamp: timestamppb.Now(), Namespace: ns, Topic: topic, Event: payloadOf(b)}
	}
	return map[string]way{
		"grpc publish": func(ctx context.Context, ns, topic string, b []byte) error {
			_, err := stock.Publish(rpc.WithScope(ctx, namespace.Scope{Name: ns}), &events.PublishRequest{Topic: topic, Event: payloadOf(b)})
			return err
		},
		"grpc forward": func(ctx context.Context, ns, topic string, b []byte) error {
			_, err := stock.Forward(ctx, &events.ForwardRequest{Envelope: envelope(ns, topic, b)})
			return err
		},
		"ttrpc": func(ctx context.Context, ns, topic string, b []byte) error {
			_, err := shims.Forward(ctx, &shimpb.ForwardRequest{Envelope: envelope(ns, topic, b)})
			return errgrpc.ToNative(err)
		},
		"nats": func(ctx context.Context, ns, topic string, b []byte) error {
			return overNATS.Publish(ctx, event.Event{Namespace: ns, Topic: topic, Time: time.Now(), Type: "t", Raw: b})
		},
	}
}

func forwardToShims(t *testing.T, b event.Bus) shimpb.TTRPCEventsService {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- eventrpc.ServeShims(ctx, lis, b) }()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c := ttrpc.NewClient(conn)
	t.Cleanup(func() { c.Close(); cancel(); <-served })
	return shimpb.NewTTRPCEventsClient(c)
}

// odd are names that mean something to somebody: to NATS, HTTP, CloudEvents, a
// file system or a terminal. Some are good.
func odd() []string {
	names := []string{
		"", "a.b", "A_b-c.9", "gate", "JS", strings.Repeat("a", 76), strings.Repeat("a", 77), ".", "..", "a..b", "-a", "a-", "_", "a_-b",
		"$JS", "_INBOX", "%2E", "a%b", "é", "\u202e", "\ufffd", "a\r\nNats-Msg-Id: x", "a/b", "a//b",
	}
	for c := range 0x80 {
		if s := string(rune(c)); ident.Check("a"+s+"b") != nil {
			names = append(names, "a"+s+"b", s)
		}
	}
	return names
}

func TestOddNamesAreRefusedOrToldAsTheyAre(t *testing.T) {
	b := open(t, config(t))
	all := ways(t, b)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
	defer cancel()
	told, err := dial(t, b.socket).Subscribe(ctx, event.SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	next, stop := iter.Pull2(told)
	defer stop()
	for how, publish := range all {
		for _, name := range odd() {
			for _, e := range []event.Event{{Namespace: name, Topic: "/a/b"}, {Namespace: "one", Topic: "/a/" + name}, {Namespace: "one", Topic: "/" + name + "/b"}} {
				err := publish(ctx, e.Namespace, e.Topic, []byte(how))
				switch good := e.Check() == nil; {
				case good && err != nil:
					t.Fatalf("%s: namespace %q, topic %q: %v", how, e.Namespace, e.Topic, err)
				case good:
					if got, err, _ := next(); err != nil || got.Namespace != e.Namespace || got.Topic != e.Topic || string(got.Raw) != how {
						t.Fatalf("%s: namespace %q, topic %q is told as %+v, %v", how, e.Namespace, e.Topic, got, err)
					}
				case err == nil:
					t.Errorf("%s: namespace %q, topic %q is let in", how, e.Namespace, e.Topic)
				case how == "grpc publish" && e.Topic == "/a/b": // the namespace is a header, which gRPC looks at first
				case !errors.Is(err, errdefs.ErrInvalidArgument):
					t.Errorf("%s: namespace %q, topic %q: %v, want %v", how, e.Namespace, e.Topic, err, errdefs.ErrInvalidArgument)
				}
			}
		}
	}
}

func TestAnEventOfTenMegabytesIsRefusedAndHarmsNobody(t *testing.T) {
	b := open(t, config(t))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
	defer cancel()
	told, err := dial(t, b.socket).Subscribe(ctx, event.SubscribeOptions{Filters: []string{"namespace==one"}})
	if err != nil {
		t.Fatal(err)
	}
	next, stop := iter.Pull2(told)
	defer stop()
	for how, publish := range ways(t, b) {
		for _, size := range []int{1<<20 + 1, 3 << 20, 10 << 20} {
			err := publish(ctx, "one", "/a/b", make([]byte, size))
			if !errors.Is(err, errdefs.ErrInvalidArgument) && !errors.Is(err, errdefs.ErrResourceExhausted) {
				t.Errorf("%s: an event of %d bytes: %v", how, size, err)
			}
			// The same connection goes on.
			if err := publish(ctx, "one", "/a/b", []byte(how)); err != nil {
				t.Fatalf("%s: after an event of %d bytes: %v", how, size, err)
			}
			if got, err, _ := next(); err != nil || string(got.Raw) != how {
				t.Fatalf("%s: told %d bytes, %v", how, len(got.Raw), err)
			}
		}
	}
	// A client that does not look at what the server takes.
	conn, err := net.Dial("unix", b.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = fmt.Fprintf(conn, "CONNECT {\"verbose\":false}\r\nPUB gantry.v1.one.a.b %d\r\n", 10<<20)
		_, _ = conn.Write(make([]byte, 10<<20))
	}()
	for r := bufio.NewReader(conn); ; {
		line, err := r.ReadString('\n')
		if strings.HasPrefix(line, "-ERR 'Maximum Payload Violation'") {
			break
		}
		if err != nil {
			t.Fatalf("the server says %q, %v", line, err)
		}
	}
	if err := b.Publish(ctx, event.New("one", at, event.ContainerDelete{ID: "last"})); err != nil {
		t.Fatal(err)
	}
	if got, err, _ := next(); err != nil || got.Subject != "last" {
		t.Errorf("told %+v, %v", got, err)
	}
}

func TestAFilterThatDoesNotParseIsInvalidEverywhere(t *testing.T) {
	b := open(t, config(t))
	conn := rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { eventrpc.Register(r, b) })
	overNATS := dial(t, b.socket)
	for _, bad := range []string{"a=b", "topic==/tasks/exit", "a==b,", ",", "event.", `"`, "a~=/", "namespace==one two", "\x00", strings.Repeat("(", 10000)} {
		stream, err := events.NewEventsClient(conn).Subscribe(t.Context(), &events.SubscribeRequest{Filters: []string{"namespace==one", bad}})
		if err == nil {
			_, err = stream.Recv()
		}
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("grpc: filter %.20q: %v", bad, err)
		}
		for how, s := range map[string]event.Subscriber{"engine": b, "nats": overNATS} {
			if _, err := s.Subscribe(t.Context(), event.SubscribeOptions{Filters: []string{"namespace==one", bad}}); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s: filter %.20q: %v", how, bad, err)
			}
		}
	}
	if _, err := overNATS.SubscribeTo(t.Context(), eventnats.Read{Options: event.SubscribeOptions{Filters: []string{`namespace=="` + strings.Repeat("a", 100<<10) + `"`}}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a filter of 100 KiB: %v", err)
	}
}
