package eventbus

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	greetingTime = 5 * time.Second
	greetingMax  = 4096 // bytes; what the server takes
)

// ServeNATS serves NATS on a unix socket until ctx ends, and whoever reads events
// by NATS, also from elsewhere. It is a work of the daemon; it closes lis. Whoever
// has no role is closed before it costs more than its descriptor: the socket is
// open to everybody. It runs once.
func (b *Bus) ServeNATS(outer context.Context, lis net.Listener) error {
	ctx, cancel := context.WithCancel(outer)
	carry, err := b.carry(ctx)
	if err != nil {
		cancel()
		lis.Close()
		if outer.Err() != nil {
			return outer.Err()
		}
		return fmt.Errorf("nats: %w", err)
	}
	close(b.carried)
	var carried sync.WaitGroup
	carried.Go(carry)
	defer carried.Wait()
	defer cancel()
	return b.accept(ctx, lis, func(c net.Conn) (func(context.Context), error) {
		own, err := b.admit(c)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) {
			defer func() { <-own.free }()
			b.serve(ctx, c, own)
		}, nil
	})
}

// accept serves whom admit admits, until ctx ends.
func (b *Bus) accept(ctx context.Context, lis net.Listener, admit func(net.Conn) (serve func(context.Context), err error)) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { lis.Close() })
	defer stop()
	defer lis.Close()
	var connections sync.WaitGroup
	defer connections.Wait()
	defer cancel()
	refused := refusals{log: b.log}
	for {
		c, err := lis.Accept()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			b.log.Error("too many open files: a peer waits", "err", err)
			if err := pause(ctx, time.Second); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("nats: %w", err)
		}
		serve, err := admit(c)
		if err != nil {
			c.Close()
			refused.add(time.Now(), err)
			continue
		}
		connections.Go(func() {
			defer c.Close()
			serve(ctx)
		})
	}
}

// admit returns the role of a peer, of which it is one more connection.
func (b *Bus) admit(c net.Conn) (*role, error) {
	uid, err := peer(c)
	if err != nil {
		return nil, err
	}
	own, ok := b.roles.byUID[uid]
	if !ok {
		return nil, fmt.Errorf("uid %d is no daemon and no plugin: %w", uid, errdefs.ErrPermissionDenied)
	}
	select {
	case own.free <- struct{}{}:
		return own, nil
	default:
		return nil, fmt.Errorf("%s has %d connections: %w", own.name, cap(own.free), errdefs.ErrResourceExhausted)
	}
}

// refusals are logged together: a peer can cause as many as it likes.
type refusals struct {
	log   *slog.Logger
	said  time.Time
	count int
}

// refusalTime is the time between two lines of the log.
const refusalTime = 10 * time.Second

func (r *refusals) add(now time.Time, err error) {
	r.count++
	if now.Sub(r.said) < refusalTime {
		return
	}
	r.log.Warn("peers of the NATS socket were refused", "count", r.count, "last", err)
	r.said, r.count = now, 0
}

// serve hands a connection to the server, under its role.
func (b *Bus) serve(ctx context.Context, outer net.Conn, own *role) {
	inner, err := b.server.InProcessConn()
	if err != nil {
		return // it is closing
	}
	r := bufio.NewReaderSize(outer, greetingMax)
	splice(ctx, outer, inner, inner, func() (io.Reader, error) {
		if err := b.greet(inner, outer, r, own); err != nil {
			b.log.Debug("a peer did not greet", "role", own.name, "err", err)
			return nil, err
		}
		b.log.Debug("connected", "role", own.name)
		return r, nil
	})
}

// splice carries bytes between a peer and the server until one of them, or ctx,
// ends. What the server says, says says. What the peer says is known once begin
// returns.
func splice(ctx context.Context, outer, inner net.Conn, says io.Reader, begin func() (io.Reader, error)) {
	stop := context.AfterFunc(ctx, func() { inner.Close(); outer.Close() })
	defer stop()

	// Either direction ends both.
	var other sync.WaitGroup
	defer other.Wait()
	defer inner.Close()
	other.Go(func() {
		defer outer.Close()
		_, _ = io.Copy(outer, says)
	})
	if said, err := begin(); err == nil {
		_, _ = io.Copy(inner, said)
	}
	outer.Close()
}

// A greeting is what a client may say of itself in its first line. Who it is
// it may not say.
type greeting struct {
	Verbose      bool   `json:"verbose"`
	Pedantic     bool   `json:"pedantic"`
	Name         string `json:"name"`
	Lang         string `json:"lang"`
	Version      string `json:"version"`
	Protocol     int    `json:"protocol"`
	Echo         bool   `json:"echo"`
	Headers      bool   `json:"headers"`
	NoResponders bool   `json:"no_responders"`
}

// greet reads the client's greeting and writes it with the role's name and
// secret. Another greeting later would need a secret that nobody is told.
func (b *Bus) greet(inner io.Writer, outer net.Conn, r *bufio.Reader, own *role) error {
	if err := outer.SetReadDeadline(time.Now().Add(greetingTime)); err != nil {
		return err
	}
	line, err := r.ReadSlice('\n')
	if err != nil {
		return err
	}
	if err := outer.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	verb, args, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
	if !bytes.EqualFold(verb, []byte("CONNECT")) {
		return fmt.Errorf("the first line is %.16q: %w", line, errdefs.ErrInvalidArgument)
	}
	g := greeting{Verbose: true, Pedantic: true, Echo: true} // the protocol's defaults
	if err := json.Unmarshal(args, &g); err != nil {
		return err
	}
	told, err := json.Marshal(struct {
		greeting
		User     string `json:"user"`
		Password string `json:"pass"`
	}{g, own.name, own.secret})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(inner, "CONNECT %s\r\n", told)
	return err
}

// peer returns the uid of who connected.
func peer(c net.Conn) (uint32, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("not a unix socket: %w", errdefs.ErrInvalidArgument)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return cred.Uid, nil
}
