//go:build !linux

package fdpass

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/containerd/errdefs"
)

// Elsewhere no daemon runs, and nobody connects. See conn_linux.go for what a
// Conn is.

type Conn struct{}

func Dial(context.Context, string) (*Conn, error) { return nil, errElsewhere() }

func newConn(*net.UnixConn) (*Conn, error) { return nil, errElsewhere() }

func errElsewhere() error {
	return fmt.Errorf("files are passed on linux only: %w", errdefs.ErrNotImplemented)
}

func (c *Conn) Close() error { return nil }

func (c *Conn) SetDeadline(time.Time) {}

func (c *Conn) Send([]byte, *os.File) error { return errElsewhere() }

func (c *Conn) Receive() ([]byte, *os.File, error) { return nil, nil, errElsewhere() }

func (c *Conn) stopReceiving() {}

func (c *Conn) Gone() bool { return true }

func (c *Conn) Watch(func()) (stop func()) { return func() {} }
