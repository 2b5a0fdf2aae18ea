package contentd

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/suite"
)

// A site is contentd as its clients meet it: the server of production on a real
// socket, with its works.
type site struct {
	t      testing.TB
	store  *Store
	srv    *rpc.Server
	socket string
	api    api.ContentClient
	ahead  atomic.Int64 // of the time of day, a time.Duration
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{t: t, store: openStore(t, quickConfig(t), nil)}
	s.store.now = func() time.Time { return time.Now().UTC().Add(time.Duration(s.ahead.Load())) }
	dir, err := os.MkdirTemp("", "contentd-") // the paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s.socket = filepath.Join(dir, "s")
	lis, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	// What a client does wrong is no line of the log.
	s.srv = rpc.NewServer(suite.Contentd, slog.New(slog.NewTextHandler(t.Output(), nil)))
	contentrpc.Register(s.srv, s.store)
	runWork(t, s.store.Collect)
	served := make(chan error, 1)
	go func() { served <- s.srv.Serve(lis) }()
	t.Cleanup(func() {
		s.srv.Stop()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	s.api = api.NewContentClient(s.dial())
	return s
}

// quickConfig is of a store in memory, if there is such a disk: for tests that
// are not of what a disk keeps.
func quickConfig(t testing.TB) Config {
	cfg := testConfig(t)
	dir, err := os.MkdirTemp("/dev/shm", "contentd-")
	if err != nil {
		return cfg
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg.Root = filepath.Join(dir, "contentd")
	return cfg
}

// dial returns a connection of its own, which ends with the test if not before.
func (s *site) dial() *grpc.ClientConn {
	s.t.Helper()
	conn, err := rpc.Dial(s.socket)
	if err != nil {
		s.t.Fatalf("Dial: %v", err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

// as returns a context of the namespace.
func (s *site) as(scope namespace.Scope) context.Context { return rpc.WithScope(s.t.Context(), scope) }

// works does what every client does, so that it fails if anything is held that
// should not be.
func (s *site) works(what string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	conn := s.dial()
	defer conn.Close()
	in := contentrpc.NewClient(conn).In(namespace.Scope{Name: "bystander"})
	b := []byte(what)
	d := digest.FromBytes(b)
	if err := content.Put(ctx, in, content.WriterOptions{Ref: "bystander", Expected: d}, bytes.NewReader(b), nil); err != nil {
		s.t.Fatalf("%s: Put of a bystander: %v", what, err)
	}
	for _, err := range in.List(ctx) {
		if err != nil {
			s.t.Fatalf("%s: List of a bystander: %v", what, err)
		}
	}
	if _, err := in.ListStatuses(ctx); err != nil {
		s.t.Fatalf("%s: ListStatuses of a bystander: %v", what, err)
	}
	if got, err := content.ReadAll(ctx, in, d, 1<<20); err != nil || string(got) != what {
		s.t.Fatalf("%s: a bystander reads %d bytes, %v", what, len(got), err)
	}
	if err := in.Delete(ctx, d); err != nil {
		s.t.Fatalf("%s: Delete of a bystander: %v", what, err)
	}
}

// A toll is what the process has of the things that run out.
type toll struct {
	goroutines  int
	descriptors int
	heap        int64 // bytes
}

// slack is what the engine itself takes more or less of from time to time: Badger
// keeps memory for a few tables.
var slack = toll{goroutines: 12, descriptors: 8, heap: 40 << 20}

func (a toll) within(b toll) bool {
	return a.goroutines <= b.goroutines+slack.goroutines && a.descriptors <= b.descriptors+slack.descriptors && a.heap <= b.heap+slack.heap
}

func (a toll) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %d KiB of heap", a.goroutines, a.descriptors, a.heap>>10)
}

// measure counts once what can be collected is.
func measure(t testing.TB) toll {
	t.Helper()
	runtime.GC() // finalizers run
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return toll{goroutines: runtime.NumGoroutine(), descriptors: len(names), heap: int64(m.HeapAlloc)}
}

// wantBack waits until no more is taken than at the base.
func wantBack(t testing.TB, base toll) {
	t.Helper()
	now, deadline := measure(t), time.Now().Add(30*time.Second)
	for ; !now.within(base); now = measure(t) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<15)
			t.Fatalf("still %v; at the base %v\n%s", now, base, stacks[:runtime.Stack(stacks, true)])
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Logf("at the base %v, and then %v", base, now)
}
