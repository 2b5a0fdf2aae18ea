package shimserve

import (
	"context"
	"net"
	"sync"

	"github.com/containerd/ttrpc"
)

// Connections counts the clients of a server, which ttrpc does not tell, and
// lets in only those of our own user and group.
type connections struct {
	peer ttrpc.Handshaker

	mu   sync.Mutex // guards what follows
	open int
	zero chan struct{} // closed when open becomes 0; nil if nobody waits
}

func newConnections() *connections {
	return &connections{peer: ttrpc.UnixSocketRequireSameUser()}
}

// Handshake implements ttrpc.Handshaker.
func (c *connections) Handshake(ctx context.Context, conn net.Conn) (net.Conn, any, error) {
	conn, who, err := c.peer.Handshake(ctx, conn)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open++
	return &counted{Conn: conn, gone: sync.OnceFunc(c.left)}, who, nil
}

func (c *connections) left() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.open == 0 && c.zero != nil {
		close(c.zero)
		c.zero = nil
	}
}

// none returns a channel that is closed when there is no connection.
func (c *connections) none() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.zero == nil {
		c.zero = make(chan struct{})
	}
	zero := c.zero
	if c.open == 0 {
		close(zero)
		c.zero = nil
	}
	return zero
}

type counted struct {
	net.Conn
	gone func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.gone()
	return c.Conn.Close()
}
