package client

import (
	"io"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/image"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/unpack"
)

// A Client has every noun of a node. [Dial] makes one of a socket; one may also
// be put together of other implementations, such as stores in memory.
type Client struct {
	Content    content.Stores
	Snapshots  snapshot.Stores
	Diffs      diff.Services
	Unpacking  unpack.Services
	Images     image.Stores
	Leases     lease.Stores
	Namespaces namespace.Store
	Containers container.Stores
	Tasks      task.Services
	Events     event.Bus

	// IODir is where the FIFOs of processes' streams are made, in directories
	// of their own; empty is the system's directory for temporary files.
	IODir string

	conn io.Closer
}

// Close ends the connection that Dial made.
func (c *Client) Close() error {
	if c.conn == nil {
		return nil
	}
	return c.conn.Close()
}

// A Namespace is a Client as one tenant uses it.
type Namespace struct {
	c    *Client
	name string
}

// In returns the namespace of that name. Whether the name is good shows with
// the first call.
func (c *Client) In(name string) *Namespace { return &Namespace{c: c, name: name} }

// scope returns the namespace's scope under a lease, which may be empty.
func (n *Namespace) scope(lease string) namespace.Scope {
	return namespace.Scope{Name: n.name, Lease: lease}
}
