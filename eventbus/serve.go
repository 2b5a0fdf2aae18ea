package eventbus

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// ServeNATS serves NATS on a unix socket until ctx ends. It is a work of the
// daemon; it closes lis.
func (b *Bus) ServeNATS(ctx context.Context, lis net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { lis.Close() })
	defer stop()
	defer lis.Close()
	var connections sync.WaitGroup
	defer connections.Wait()
	defer cancel()
	free := make(chan struct{}, connectionsMax)
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
		select {
		case free <- struct{}{}:
			connections.Go(func() {
				defer func() { <-free }()
				b.serve(ctx, c)
			})
		default:
			b.log.Warn("too many connections: one is refused", "count", connectionsMax)
			c.Close()
		}
	}
}

// serve hands a connection to the server, under the role of its peer.
func (b *Bus) serve(ctx context.Context, outer net.Conn) {
	defer outer.Close()
	uid, err := peer(outer)
	if err != nil {
		b.log.Warn("a peer without credentials is refused", "err", err)
		return
	}
	inner, err := b.server.InProcessConn()
	if err != nil {
		return // it is closing
	}
	defer inner.Close()
	stop := context.AfterFunc(ctx, func() { inner.Close(); outer.Close() })
	defer stop()

	// Either direction ends both.
	var other sync.WaitGroup
	defer other.Wait()
	defer inner.Close()
	other.Go(func() {
		defer outer.Close()
		_, _ = io.Copy(outer, inner)
	})
	role := b.roles.of(uid)
	r := bufio.NewReaderSize(outer, greetingMax)
	if err := b.greet(inner, outer, r, role); err != nil {
		b.log.Debug("a peer did not greet", "uid", uid, "err", err)
		outer.Close()
		return
	}
	b.log.Debug("connected", "uid", uid, "role", role)
	_, _ = io.Copy(inner, r)
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
func (b *Bus) greet(inner io.Writer, outer net.Conn, r *bufio.Reader, role string) error {
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
	}{g, role, b.roles.secrets[role]})
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
