package fdpass

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// A Server answers on a socket.
type Server struct {
	// ConnsMax is how many connections there are at most, and ConnsUserMax how
	// many of one user. One that is too many is closed at once: its peer has
	// another way.
	ConnsMax, ConnsUserMax int

	// Admit says whose a connection is that was just accepted. An error closes
	// it; Admit itself neither reads nor writes.
	Admit func(c *net.UnixConn) (Admitted, error)

	// DrainTime is how long what is being done at the end may take.
	DrainTime time.Duration

	Log *slog.Logger
}

// Admitted is a peer that may talk.
type Admitted struct {
	User uint32

	// Talk has the connection to itself until it returns; then it is closed.
	// When the server ends, what waits in Receive is
	// [os.ErrDeadlineExceeded] at once, and ctx ends after DrainTime.
	Talk func(ctx context.Context, c *Conn)
}

// pauses are how long Serve waits when it cannot accept: for want of
// descriptors, mostly.
const pauseMin, pauseMax = 5 * time.Millisecond, time.Second

// Serve answers on lis until ctx ends, and returns when everybody has been
// answered. It closes lis.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	t := &talks{server: s, users: make(map[uint32]int), open: make(map[*Conn]bool)}
	talking, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	defer context.AfterFunc(ctx, func() { lis.Close() })()
	for pause := pauseMin; ; {
		c, err := lis.Accept()
		switch {
		case err == nil:
			pause = pauseMin
			t.begin(talking, c)
			continue
		case ctx.Err() != nil:
			t.drain(cut)
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			t.drain(cut)
			return fmt.Errorf("socket of files: %w", err)
		}
		s.Log.Warn("a connection was not accepted", "err", err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		pause = min(2*pause, pauseMax)
	}
}

// talks are the connections of a server that serves.
type talks struct {
	server *Server
	all    sync.WaitGroup

	// mu guards the fields below it.
	mu    sync.Mutex
	users map[uint32]int // connections by user
	open  map[*Conn]bool
}

// begin talks to c if it may and there is room.
func (t *talks) begin(ctx context.Context, c net.Conn) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return
	}
	who, err := t.server.Admit(u)
	if err == nil {
		err = t.reserve(who.User)
	}
	if err != nil {
		t.server.Log.Debug("a connection was refused", "err", err)
		u.Close()
		return
	}
	conn, err := newConn(u)
	if err != nil {
		t.release(who.User)
		return
	}
	t.mu.Lock()
	t.open[conn] = true
	t.mu.Unlock()
	t.all.Go(func() {
		defer t.release(who.User)
		defer t.end(conn)
		who.Talk(ctx, conn)
	})
}

func (t *talks) reserve(user uint32) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.open) >= t.server.ConnsMax || t.users[user] >= t.server.ConnsUserMax {
		return fmt.Errorf("%d connections, %d of uid %d, and no more: %w", len(t.open), t.users[user], user, errdefs.ErrResourceExhausted)
	}
	t.users[user]++
	return nil
}

func (t *talks) release(user uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.users[user]--; t.users[user] == 0 {
		delete(t.users, user)
	}
}

func (t *talks) end(c *Conn) {
	t.mu.Lock()
	delete(t.open, c)
	t.mu.Unlock()
	c.Close()
}

// drain ends every wait for a packet now, and every talk after the drain time.
func (t *talks) drain(cut func()) {
	t.mu.Lock()
	for c := range t.open {
		c.stopReceiving()
	}
	t.mu.Unlock()
	timer := time.AfterFunc(t.server.DrainTime, cut)
	defer timer.Stop()
	t.all.Wait()
}
