//go:build linux

package fdpass

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// waitTime is how long a test waits for what is to happen soon.
const waitTime = 20 * time.Second

// serve answers on a socket with talk and returns its path.
func serve(t *testing.T, s Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	lis, err := net.ListenUnix(Network, &net.UnixAddr{Name: path, Net: Network})
	if err != nil {
		t.Fatal(err)
	}
	s.Log = slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, lis) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(waitTime):
			t.Error("Serve goes on after its context")
		}
	})
	return path
}

// admit lets everybody in.
func admit(talk func(context.Context, *Conn)) func(*net.UnixConn) (Admitted, error) {
	return func(*net.UnixConn) (Admitted, error) { return Admitted{User: 1, Talk: talk}, nil }
}

// echo sends each packet back, with the file that it came with.
func echo(_ context.Context, c *Conn) {
	for {
		p, f, err := c.Receive()
		if err != nil {
			return
		}
		err = c.Send(p, f)
		if f != nil {
			f.Close()
		}
		if err != nil {
			return
		}
	}
}

func echoServer(t *testing.T) string {
	return serve(t, Server{ConnsMax: 8, ConnsUserMax: 8, Admit: admit(echo)})
}

func dial(t *testing.T, path string) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(waitTime))
	return c
}

func open(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestPacketsAndFiles(t *testing.T) {
	c := dial(t, echoServer(t))
	f := open(t)
	for _, size := range []int{1, 2, 1000, PacketMax} {
		for _, with := range []*os.File{nil, f} {
			want := bytes.Repeat([]byte{7}, size)
			if err := c.Send(want, with); err != nil {
				t.Fatalf("Send of %d: %v", size, err)
			}
			got, file, err := c.Receive()
			if err != nil || !bytes.Equal(got, want) || (file != nil) != (with != nil) {
				t.Fatalf("Receive of %d: %d bytes, %v, %v", size, len(got), file, err)
			}
			if file == nil {
				continue
			}
			a, errA := f.Stat()
			b, errB := file.Stat()
			if errA != nil || errB != nil || !os.SameFile(a, b) {
				t.Errorf("another file came: %v, %v", errA, errB)
			}
			if flags, err := unix.FcntlInt(file.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("a program that is run would inherit the file: %x, %v", flags, err)
			}
			file.Close()
		}
	}
}

func TestPacketThatDoesNotFitIsNotSent(t *testing.T) {
	c := dial(t, echoServer(t))
	for _, p := range [][]byte{nil, make([]byte, PacketMax+1)} {
		if err := c.Send(p, nil); !errors.Is(err, ErrProtocol) {
			t.Errorf("Send of %d: %v", len(p), err)
		}
	}
	if err := c.Send([]byte("still"), nil); err != nil {
		t.Error(err)
	}
}

func TestNobodyThere(t *testing.T) {
	if _, err := Dial(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("got %v, want unavailable", err)
	}
	lis, err := net.Listen("unix", filepath.Join(t.TempDir(), "stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	if _, err := Dial(t.Context(), lis.Addr().String()); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("a socket of another kind: got %v, want unavailable", err)
	}
}

// TestHostilePackets sends what Send does not, and looks what is left of it.
func TestHostilePackets(t *testing.T) {
	for name, send := range map[string]func(fd, file int) error{
		"too long": func(fd, _ int) error {
			return unix.Sendmsg(fd, make([]byte, PacketMax+1), nil, nil, 0)
		},
		"nothing": func(fd, _ int) error { return unix.Sendmsg(fd, nil, nil, nil, 0) },
		"two files": func(fd, f int) error {
			return unix.Sendmsg(fd, []byte("x"), unix.UnixRights(f, f), nil, 0)
		},
		"253 files": func(fd, f int) error {
			all := make([]int, 253)
			for i := range all {
				all[i] = f
			}
			return unix.Sendmsg(fd, []byte("x"), unix.UnixRights(all...), nil, 0)
		},
		"files in two messages": func(fd, f int) error {
			return unix.Sendmsg(fd, []byte("x"), append(unix.UnixRights(f), unix.UnixRights(f, f, f)...), nil, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			path := serve(t, Server{ConnsMax: 8, ConnsUserMax: 8, Admit: admit(func(_ context.Context, c *Conn) {
				_, f, err := c.Receive()
				if f != nil {
					f.Close()
				}
				ended <- err
			})})
			c, f := dial(t, path), open(t)
			before := openFiles(t)
			var failed error
			if err := c.raw.Control(func(fd uintptr) { failed = send(int(fd), int(f.Fd())) }); err != nil || failed != nil {
				t.Fatalf("send: %v, %v", err, failed)
			}
			if err := <-ended; !errors.Is(err, ErrProtocol) && !errors.Is(err, io.EOF) {
				t.Errorf("Receive: %v", err)
			}
			if _, _, err := c.Receive(); !errors.Is(err, io.EOF) {
				t.Errorf("the connection goes on: %v", err)
			}
			if got := openFiles(t); got > before {
				t.Errorf("%d descriptors, %d before", got, before)
			}
		})
	}
}

// openFiles counts the descriptors of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestPeerThatDoesNotReadHoldsOneFile asks and asks, and takes no answer.
func TestPeerThatDoesNotReadHoldsOneFile(t *testing.T) {
	f := open(t)
	var sent atomic.Int32
	failed := make(chan error, 1)
	path := serve(t, Server{ConnsMax: 8, ConnsUserMax: 8, Admit: admit(func(_ context.Context, c *Conn) {
		for {
			if _, _, err := c.Receive(); err != nil {
				failed <- err
				return
			}
			if err := c.Send([]byte("a file"), f); err != nil {
				failed <- err
				return
			}
			sent.Add(1)
		}
	})})
	c := dial(t, path)
	for range 100 {
		var err error
		if e := c.raw.Control(func(fd uintptr) { err = unix.Sendmsg(int(fd), []byte("ask"), nil, nil, unix.MSG_NOSIGNAL) }); e != nil || err != nil {
			break
		}
	}
	if err := <-failed; !errors.Is(err, ErrProtocol) || sent.Load() != 1 {
		t.Errorf("%d files were sent, then %v; want 1 and a broken rule", sent.Load(), err)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	path := serve(t, Server{ConnsMax: 3, ConnsUserMax: 2, Admit: func(*net.UnixConn) (Admitted, error) {
		return Admitted{User: 1, Talk: echo}, nil
	}})
	first, second := dial(t, path), dial(t, path)
	for _, c := range []*Conn{first, second} {
		if err := c.Send([]byte("x"), nil); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	third := dial(t, path)
	if _, _, err := third.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("a third of the user: %v, want the end", err)
	}
	first.Close()
	for over := time.Now().Add(waitTime); ; runtime.Gosched() {
		c := dial(t, path)
		err := c.Send([]byte("x"), nil)
		if err == nil {
			_, _, err = c.Receive()
		}
		if err == nil {
			break
		}
		if time.Now().After(over) {
			t.Fatalf("after one of two has ended: %v", err)
		}
	}
}

// TestManyConnects connects ten thousand times, to one who admits nobody and to
// one who does, and counts what is left.
func TestManyConnects(t *testing.T) {
	for name, refuse := range map[string]error{"refused": errdefs.ErrPermissionDenied, "admitted": nil} {
		t.Run(name, func(t *testing.T) {
			path := serve(t, Server{ConnsMax: 16, ConnsUserMax: 16, Admit: func(*net.UnixConn) (Admitted, error) {
				return Admitted{User: 1, Talk: echo}, refuse
			}})
			goroutines, files := runtime.NumGoroutine(), openFiles(t)
			for range 10_000 {
				// One that does not fit in the queue is turned away.
				if c, err := Dial(t.Context(), path); err == nil {
					c.Close()
				}
			}
			for over := time.Now().Add(waitTime); runtime.NumGoroutine() > goroutines || openFiles(t) > files; runtime.Gosched() {
				if time.Now().After(over) {
					t.Fatalf("%d goroutines and %d descriptors, %d and %d before",
						runtime.NumGoroutine(), openFiles(t), goroutines, files)
				}
			}
		})
	}
}

func TestDeadlineEndsAWait(t *testing.T) {
	c := dial(t, echoServer(t))
	c.SetDeadline(time.Now().Add(time.Millisecond))
	if _, _, err := c.Receive(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestGoneAndWatch(t *testing.T) {
	talk := make(chan func(*Conn))
	path := serve(t, Server{ConnsMax: 8, ConnsUserMax: 8, Admit: admit(func(_ context.Context, c *Conn) { (<-talk)(c) })})
	c := dial(t, path)
	if c.Gone() {
		t.Error("gone before it has said anything")
	}
	watched := make(chan bool, 1)
	talk <- func(c *Conn) {
		called := false
		c.Watch(func() { called = true })()
		hung := make(chan struct{})
		stop := c.Watch(func() { close(hung) })
		watched <- called
		<-hung
		stop()
		watched <- true
	}
	if <-watched {
		t.Error("a watch that was stopped saw the peer hang up")
	}
	c.Close()
	select {
	case <-watched:
	case <-time.After(waitTime):
		t.Error("a watch did not see the peer hang up")
	}
	c = dial(t, path)
	talk <- func(*Conn) {}
	if _, _, err := c.Receive(); !errors.Is(err, io.EOF) || !c.Gone() {
		t.Errorf("after the server hung up: %v, gone %t", err, c.Gone())
	}
}

// TestDrainLetsWhatIsDoneEnd ends a server whose one connection waits and whose
// other is at work.
func TestDrainLetsWhatIsDoneEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	lis, err := net.ListenUnix(Network, &net.UnixAddr{Name: path, Net: Network})
	if err != nil {
		t.Fatal(err)
	}
	working, work := make(chan bool), make(chan bool)
	s := Server{ConnsMax: 8, ConnsUserMax: 8, DrainTime: waitTime, Log: slog.New(slog.DiscardHandler),
		Admit: admit(func(ctx context.Context, c *Conn) {
			if _, _, err := c.Receive(); err != nil {
				return
			}
			working <- true
			<-work
			c.SetDeadline(time.Now().Add(waitTime))
			if err := c.Send([]byte("done "+strconv.FormatBool(ctx.Err() == nil)), nil); err != nil {
				t.Error(err)
			}
			if _, _, err := c.Receive(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Receive of one that ends: %v", err)
			}
		})}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, lis) }()
	waits, works := dial(t, path), dial(t, path)
	if err := works.Send([]byte("x"), nil); err != nil {
		t.Fatal(err)
	}
	<-working
	cancel()
	if _, _, err := waits.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("who waits: %v, want the end", err)
	}
	close(work)
	if p, _, err := works.Receive(); err != nil || !strings.HasPrefix(string(p), "done true") {
		t.Errorf("who works: %q, %v", p, err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve: %v", err)
	}
}

func FuzzControlMessage(f *testing.F) {
	f.Add(unix.UnixRights(1)[:8])
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, rightsSpace))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Numbers of descriptors come from the kernel; only the form is tried.
		if _, err := descriptors(b); err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("%x: %v", b, err)
		}
	})
}

// BenchmarkRoundTrip asks for a file, which is closed.
func BenchmarkRoundTrip(b *testing.B) {
	path := filepath.Join(b.TempDir(), "s")
	lis, err := net.ListenUnix(Network, &net.UnixAddr{Name: path, Net: Network})
	if err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	s := Server{ConnsMax: 1, ConnsUserMax: 1, Log: slog.New(slog.DiscardHandler), Admit: admit(func(_ context.Context, c *Conn) {
		for {
			p, _, err := c.Receive()
			if err != nil || c.Send(p, f) != nil {
				return
			}
		}
	})}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, lis) }()
	c, err := Dial(b.Context(), path)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := c.Send([]byte("ask"), nil); err != nil {
			b.Fatal(err)
		}
		_, got, err := c.Receive()
		if err != nil {
			b.Fatal(err)
		}
		got.Close()
	}
	c.Close()
	cancel()
	<-done
}
