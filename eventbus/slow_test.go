package eventbus_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventrpc"
	"github.com/gantryd/gantry/services/rpc"
)

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// publishMany publishes n events of some size from several publishers at once.
func publishMany(t *testing.T, p event.Publisher, n, bytes int) {
	t.Helper()
	var all sync.WaitGroup
	const publishers = 16
	for i := range publishers {
		all.Go(func() {
			for k := i; k < n; k += publishers {
				e := event.Event{ID: fmt.Sprint("many/", n, "/", k), Namespace: "one", Topic: "/many/events", Time: at, Type: "t", Raw: make([]byte, bytes)}
				if err := p.Publish(t.Context(), e); err != nil {
					t.Errorf("Publish: %v", err)
				}
			}
		})
	}
	all.Wait()
}

// count returns when n more events were told, in order.
func count(t *testing.T, next func() (event.Event, error, bool), n int) {
	t.Helper()
	var last uint64
	for i := range n {
		e, err, ok := next()
		if err != nil || !ok || e.Sequence <= last {
			t.Fatalf("after %d events: %d after %d, %v, %t", i, e.Sequence, last, err, ok)
		}
		last = e.Sequence
	}
}

// narrow connects a client that takes no more than it has to: it is this process
// that is measured, and a client takes what it can.
func narrow(t *testing.T, b event.Bus) *grpc.ClientConn {
	t.Helper()
	lis, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := rpc.NewServer("slow", slog.New(slog.DiscardHandler))
	eventrpc.Register(srv, b)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	conn, err := grpc.NewClient("unix://"+lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); srv.Stop(); <-served })
	return conn
}

// Subscribers of gRPC that do not read hold no more than a little each, however
// much is published, and miss nothing when they do.
func TestSlowSubscribersAreToldEverythingAndCostLittle(t *testing.T) {
	const subscribers, events, bytes = 100, 1000, 8 << 10
	b := open(t, config(t))
	c := eventrpc.NewClient(narrow(t, b))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var nexts []func() (event.Event, error, bool)
	for range subscribers {
		told, err := c.Subscribe(ctx, event.SubscribeOptions{Filters: []string{"namespace==one"}})
		if err != nil {
			t.Fatal(err)
		}
		next, stop := iter.Pull2(told)
		defer stop()
		nexts = append(nexts, next)
	}
	before := heap()
	publishMany(t, b, events, bytes)
	// The window, and of each a block and what gRPC has on both ends. All that
	// was published would be ten times as much.
	const limit = 16<<20 + subscribers*512<<10
	if grown := heap() - before; grown > limit {
		t.Errorf("%d subscribers that do not read %d MiB hold %d KiB", subscribers, events*bytes>>20, grown>>10)
	} else {
		t.Logf("%d subscribers that do not read %d MiB hold %d KiB", subscribers, events*bytes>>20, grown>>10)
	}
	for i := 0; i < subscribers; i += 20 {
		count(t, nexts[i], events)
	}
}

// Connections that are not read are closed when too much waits for them, and
// harm nobody until then.
func TestConnectionsThatAreNeverReadAreBounded(t *testing.T) {
	const connections, events, bytes = 16, 1000, 8 << 10
	b := open(t, config(t))
	reader := dial(t, b.socket)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begin, err := reader.Subscribe(ctx, event.SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	next, stop := iter.Pull2(begin)
	defer stop()
	before := heap()
	for i := range 2 * connections {
		conn, err := net.Dial("unix", b.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		what := "SUB gantry.v1.> 1\r\n"
		if i%2 == 0 {
			read := fmt.Sprintf("PUB gantry.bus.v1.read _INBOX.%d 17\r\n{\"wait_ms\":25000}\r\n", i)
			what = fmt.Sprintf("SUB _INBOX.%d 1\r\n", i) + strings.Repeat(read, 50)
		}
		if _, err := conn.Write([]byte("CONNECT {\"verbose\":false,\"headers\":true}\r\n" + what)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "they are connected", func() error {
		if st, err := b.Status(ctx); err != nil || st.Connections != 2*connections+1 {
			return fmt.Errorf("%d connections, %w", st.Connections, errors.Join(err, errors.New("too few")))
		}
		return nil
	})
	publishMany(t, b, events, bytes)
	count(t, next, events)
	const limit = 16<<20 + 2*connections*3<<20
	grown := heap() - before
	t.Logf("%d connections that are not read hold %d KiB", 2*connections, grown>>10)
	if grown > limit {
		t.Errorf("%d connections that are not read hold %d KiB", 2*connections, grown>>10)
	}
}
