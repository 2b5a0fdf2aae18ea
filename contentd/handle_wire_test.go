package contentd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/fdpass"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/rpc/rpctest"
	"github.com/gantryd/gantry/services/suite"
)

// A door is a socket of files that opens and closes.
type door struct {
	t      *testing.T
	s      *Store
	socket string
	close  func()
}

func newDoor(t *testing.T, s *Store) *door {
	d := &door{t: t, s: s, socket: filepath.Join(t.TempDir(), "s"), close: func() {}}
	t.Cleanup(func() { d.close() })
	return d
}

// open serves until close, as a daemon that starts and stops.
func (d *door) open() {
	d.t.Helper()
	lis, err := net.ListenUnix(fdpass.Network, &net.UnixAddr{Name: d.socket, Net: fdpass.Network})
	if err != nil {
		d.t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	server := &contentrpc.HandleServer{Stores: d.s, Guard: rpc.NewGuard(suite.Contentd, log), Store: d.s.Name(), Log: log}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- server.Serve(ctx, lis) }()
	d.close = func() {
		cancel()
		<-done
		d.close = func() {}
	}
}

// grpcOf is the store over gRPC, which is there all the time.
func grpcOf(t *testing.T, s *Store) content.Stores {
	return contentrpc.NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { contentrpc.Register(r, s) }))
}

// nobody is the gRPC of a daemon that is away: what is asked there fails.
type nobody struct{ content.Store }

func (nobody) In(namespace.Scope) content.Store { return nobody{} }

var errNobody = errors.New("asked over gRPC")

func (nobody) Open(context.Context, digest.Digest) (content.Reader, error) { return nil, errNobody }

func (nobody) Writer(context.Context, content.WriterOptions) (content.Writer, error) {
	return nil, errNobody
}

func handlesAt(t *testing.T, p contentrpc.Place) *contentrpc.Handles {
	h := contentrpc.NewHandles(func(context.Context) (contentrpc.Place, error) { return p, nil })
	h.WriteMin = 0
	t.Cleanup(func() { h.Close() })
	return h
}

func TestWhatAStoreSaysIsNotAskedAgain(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	d := newDoor(t, s)
	d.open()
	c := contentrpc.WithHandles(nobody{}, handlesAt(t, contentrpc.Place{Socket: d.socket, Store: s.Name()})).In(one)
	if _, err := c.Open(t.Context(), bodyD); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Open: %v, want not found", err)
	}
	if _, err := c.Writer(t.Context(), content.WriterOptions{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Writer without a ref: %v, want invalid argument", err)
	}
	w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := c.Writer(t.Context(), content.WriterOptions{Ref: "r"}); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "locked") {
		t.Errorf("Writer of a ref that is held: %v, want that it is locked", err)
	}
}

// TestWhereThereAreNoFilesThereIsGRPC asks where nobody is, where somebody else
// is, where nothing can be found, and where who is there is of another kind.
func TestWhereThereAreNoFilesThereIsGRPC(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	d := newDoor(t, s)
	d.open()
	stream, err := net.Listen("unix", filepath.Join(t.TempDir(), "stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	silent, err := net.ListenUnix(fdpass.Network, &net.UnixAddr{Name: filepath.Join(t.TempDir(), "silent"), Net: fdpass.Network})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := silent.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	defer silent.Close()
	at := func(p contentrpc.Place) func(context.Context) (contentrpc.Place, error) {
		return func(context.Context) (contentrpc.Place, error) { return p, nil }
	}
	for name, find := range map[string]func(context.Context) (contentrpc.Place, error){
		"no socket":                 at(contentrpc.Place{Socket: filepath.Join(t.TempDir(), "none")}),
		"another store":             at(contentrpc.Place{Socket: d.socket, Store: "other"}),
		"a stream":                  at(contentrpc.Place{Socket: stream.Addr().String()}),
		"somebody who hangs up":     at(contentrpc.Place{Socket: silent.Addr().String()}),
		"nothing that can be found": func(context.Context) (contentrpc.Place, error) { return contentrpc.Place{}, errdefs.ErrNotFound },
	} {
		t.Run(name, func(t *testing.T) {
			h := contentrpc.NewHandles(find)
			h.WriteMin = 0
			defer h.Close()
			c := contentrpc.WithHandles(grpcOf(t, s), h).In(namespace.Scope{Name: fmt.Sprintf("ns%d", len(name))})
			for range 2 {
				if err := content.Put(t.Context(), c, content.WriterOptions{Ref: "r"}, bytes.NewReader(body), nil); err != nil {
					t.Fatalf("Put: %v", err)
				}
				if got, err := content.ReadAll(t.Context(), c, bodyD, 1<<20); err != nil || !bytes.Equal(got, body) {
					t.Errorf("ReadAll: %d bytes, %v", len(got), err)
				}
			}
			if _, err := h.Files(one).OpenFile(t.Context(), bodyD); !errors.Is(err, errdefs.ErrUnavailable) {
				t.Errorf("OpenFile: %v, want unavailable", err)
			}
		})
	}
}

// TestFilesAcrossARestart ends the daemon's socket in the middle of a write and
// between reads, and starts it again.
func TestFilesAcrossARestart(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	d := newDoor(t, s)
	d.open()
	c := contentrpc.WithHandles(grpcOf(t, s), handlesAt(t, contentrpc.Place{Socket: d.socket, Store: s.Name()})).In(one)
	w, err := c.Writer(t.Context(), content.WriterOptions{Ref: "r"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body[:30_000]); err != nil {
		t.Fatal(err)
	}
	d.close()
	if _, err := w.Write(body[30_000:]); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Write after the daemon has gone: %v, want unavailable", err)
	}
	if err := w.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if w, err = c.Writer(t.Context(), content.WriterOptions{Ref: "r"}); err != nil {
		t.Fatalf("Writer over gRPC: %v", err)
	}
	if st, err := w.Status(t.Context()); err != nil || st.Offset != 30_000 {
		t.Errorf("Status: %+v, %v; want what was written", st, err)
	}
	if _, err := w.Write(body[30_000:]); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), int64(len(body)), bodyD, nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	for range 3 {
		r, err := c.Open(t.Context(), bodyD)
		if err != nil {
			t.Fatalf("Open while there are no files: %v", err)
		}
		r.Close()
		d.open()
		if r, err = c.Open(t.Context(), bodyD); err != nil {
			t.Fatalf("Open: %v", err)
		}
		d.close()
		// What is open stays so.
		if n, err := r.ReadAt(make([]byte, 100), 0); err != nil && n != 100 {
			t.Errorf("ReadAt: %d, %v", n, err)
		}
		r.Close()
	}
}

// TestFilesComeBack asks often enough to find the daemon again.
func TestFilesComeBack(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	if err := content.Put(t.Context(), s.In(one), content.WriterOptions{Ref: "r"}, bytes.NewReader(body), nil); err != nil {
		t.Fatal(err)
	}
	d := newDoor(t, s)
	h := handlesAt(t, contentrpc.Place{Socket: d.socket})
	open := func() error {
		f, err := h.Files(one).OpenFile(t.Context(), bodyD)
		if err == nil {
			f.Close()
		}
		return err
	}
	if err := open(); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Fatalf("OpenFile: %v, want unavailable", err)
	}
	d.open()
	pause := time.NewTicker(50 * time.Millisecond)
	defer pause.Stop()
	for over := time.Now().Add(30 * time.Second); open() != nil; <-pause.C {
		if time.Now().After(over) {
			t.Fatal("the files have not come back")
		}
	}
}

// TestLabelsThatFitInNoPacket commits with more than a packet holds.
func TestLabelsThatFitInNoPacket(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	d := newDoor(t, s)
	d.open()
	c := contentrpc.WithHandles(grpcOf(t, s), handlesAt(t, contentrpc.Place{Socket: d.socket})).In(one)
	labels := map[string]string{}
	for i := range 100 {
		labels[fmt.Sprintf("l%d", i)] = strings.Repeat("x", 2000)
	}
	w, err := c.Writer(t.Context(), content.WriterOptions{Ref: "r"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), int64(len(body)), bodyD, labels); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	if info, err := c.Info(t.Context(), bodyD); err != nil || len(info.Labels) != len(labels) {
		t.Errorf("Info: %d labels, %v", len(info.Labels), err)
	}
	if _, err := w.Write(body); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Write of a writer that is over: %v", err)
	}
}

// TestWriterThatIsGivenUpIsNoMore cancels a writer and leaves it, many times:
// refs are let go of, and nothing of them is left here or there.
func TestWriterThatIsGivenUpIsNoMore(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	d := newDoor(t, s)
	d.open()
	c := contentrpc.WithHandles(nobody{}, handlesAt(t, contentrpc.Place{Socket: d.socket})).In(one)
	give := func() {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w, err := content.Wait(t.Context(), c, content.WriterOptions{Ref: "r"})
		if err == nil {
			w.Close()
			w, err = content.Wait(ctx, c, content.WriterOptions{Ref: "r"})
		}
		if err != nil {
			t.Fatalf("Wait: %v", err)
		}
		if _, err := w.Write([]byte("x")); err != nil {
			t.Fatalf("Write: %v", err)
		}
		cancel()
		if _, err := w.Write([]byte("y")); !errors.Is(err, context.Canceled) && !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("Write of a writer that was given up: %v", err)
		}
		w.Close()
	}
	give()
	goroutines, files := runtime.NumGoroutine(), countFiles(t)
	for range 50 {
		give()
	}
	for over := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > goroutines || countFiles(t) > files; runtime.Gosched() {
		if time.Now().After(over) {
			t.Fatalf("%d goroutines and %d files, %d and %d before", runtime.NumGoroutine(), countFiles(t), goroutines, files)
		}
	}
}

func countFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
