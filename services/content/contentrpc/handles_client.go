package contentrpc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	contentv1 "github.com/gantryd/gantry/proto/gantry/content/v1"
	"github.com/gantryd/gantry/services/fdpass"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
)

// A Place is where a store hands out its files.
type Place struct {
	Socket string

	// Store is what the store is called there, or empty if the socket cannot
	// be another's.
	Store string
}

// Handles is the other end of a [HandleServer]: a few connections that are
// made when they are needed.
type Handles struct {
	// WriteMin is how many bytes are worth a file to write, where it is known
	// how many there will be. For fewer the file costs more than it saves: a
	// record that must be durable before it is lent, and a second look at the
	// bytes.
	WriteMin int64

	find func(context.Context) (Place, error)

	// mu guards the fields below it.
	mu    sync.Mutex
	place *Place
	idle  []*fdpass.Conn
	until time.Time // nobody asks before
}

// NewHandles returns the files of the store that find finds. It is called when
// they are first needed, and again when they have been away.
func NewHandles(find func(context.Context) (Place, error)) *Handles {
	return &Handles{WriteMin: 1 << 20, find: find}
}

// HandlesAt returns the files of the store behind a socket.
func HandlesAt(socket string) *Handles {
	return NewHandles(func(context.Context) (Place, error) { return Place{Socket: socket}, nil })
}

const (
	// idleMax is how many connections are kept for the next who asks.
	idleMax = 4

	// awayTime is how long nobody asks for files after a socket was not there,
	// as while its daemon starts again, and deniedTime after it said no.
	awayTime, deniedTime = time.Second, time.Minute

	findTime = 2 * time.Second
	dialTime = time.Second
	askTime  = 10 * time.Second

	// startTime is longer than a writer waits for another one that brings the
	// same bytes.
	startTime = 11 * time.Minute
)

// errAway says that there are no files to be had, and that the store is to be
// asked over gRPC. Nothing was done.
var errAway = errors.New("no files are handed out")

// errLong says that a request does not fit into a packet. Nothing was sent.
var errLong = fmt.Errorf("the request is too long for a packet: %w", errdefs.ErrInvalidArgument)

// Close ends the connections that nobody uses.
func (h *Handles) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropLocked()
	return nil
}

func (h *Handles) dropLocked() {
	for _, c := range h.idle {
		c.Close()
	}
	h.idle = nil
}

// away notes that there is nobody, and returns errAway.
func (h *Handles) away(ctx context.Context, err error) error {
	if e := ctx.Err(); e != nil {
		return e // which says nothing about the socket
	}
	pause := awayTime
	if errors.Is(err, errdefs.ErrPermissionDenied) || errors.Is(err, errdefs.ErrNotImplemented) || errors.Is(err, errRefused) {
		pause = deniedTime
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.until = time.Now().Add(pause)
	h.place = nil
	h.dropLocked()
	return fmt.Errorf("%w: %w", err, errAway)
}

// kept returns a connection that was used before, if there is one.
func (h *Handles) kept() (*fdpass.Conn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Now().Before(h.until) {
		return nil, errAway
	}
	for len(h.idle) > 0 {
		c := h.idle[len(h.idle)-1]
		h.idle = h.idle[:len(h.idle)-1]
		if !c.Gone() {
			return c, nil
		}
		c.Close()
	}
	return nil, nil
}

// keep keeps a connection for the next.
func (h *Handles) keep(c *fdpass.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.idle) < idleMax {
		h.idle = append(h.idle, c)
		return
	}
	c.Close()
}

// where returns the place of the store.
func (h *Handles) where(ctx context.Context) (Place, error) {
	h.mu.Lock()
	place := h.place
	h.mu.Unlock()
	if place != nil {
		return *place, nil
	}
	ctx, cancel := context.WithTimeout(ctx, findTime)
	defer cancel()
	p, err := h.find(ctx)
	if err != nil {
		return Place{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.place = &p
	return p, nil
}

func (h *Handles) dial(ctx context.Context) (*fdpass.Conn, error) {
	p, err := h.where(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	return fdpass.Dial(ctx, p.Socket)
}

// begin asks for something on a connection of its own, which is returned with
// the answer, for the caller to keep or close. An error that is not the store's
// is errAway, or that of ctx: then nothing was done, or was left with the
// connection.
func (h *Handles) begin(ctx context.Context, scope namespace.Scope, req *contentv1.Request, limit time.Duration) (*fdpass.Conn, *contentv1.Response, *os.File, error) {
	c, err := h.kept()
	if err != nil {
		return nil, nil, nil, err
	}
	place, err := h.where(ctx)
	if err != nil {
		return nil, nil, nil, h.away(ctx, err)
	}
	req.Namespace, req.Lease, req.Store = scope.Name, scope.Lease, place.Store
	for old := c != nil; ; old = false {
		if c == nil {
			if c, err = h.dial(ctx); err != nil {
				return nil, nil, nil, h.away(ctx, err)
			}
		}
		resp, f, err := ask(ctx, c, req, limit)
		switch {
		case err == nil:
			return c, resp, f, nil
		case ctx.Err() != nil:
			c.Close()
			return nil, nil, nil, err
		case errors.Is(err, errBroken) && old:
			// The daemon has ended since, and may be there again.
			c.Close()
			c = nil
			continue
		case errors.Is(err, errBroken), errors.Is(err, errRefused):
			c.Close()
			return nil, nil, nil, h.away(ctx, err)
		case errors.Is(err, errLong):
			h.keep(c)
			return nil, nil, nil, fmt.Errorf("%w: %w", err, errAway)
		}
		h.keep(c)
		return nil, nil, nil, err
	}
}

var (
	// errBroken says that a connection ended before the answer.
	errBroken = fmt.Errorf("the connection for files broke off: %w", errdefs.ErrUnavailable)

	// errRefused says that the socket does not do what was asked for.
	errRefused = errors.New("refused")
)

// ask makes one round trip. The end of ctx is that of the connection.
func ask(ctx context.Context, c *fdpass.Conn, req *contentv1.Request, limit time.Duration) (*contentv1.Response, *os.File, error) {
	packet, err := proto.Marshal(req)
	if err != nil {
		return nil, nil, err
	}
	if len(packet) > fdpass.PacketMax {
		return nil, nil, errLong
	}
	c.SetDeadline(time.Now().Add(limit))
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := c.Send(packet, nil); err != nil {
		return nil, nil, broken(ctx, err)
	}
	packet, f, err := c.Receive()
	if err != nil {
		return nil, nil, broken(ctx, err)
	}
	resp := &contentv1.Response{}
	if err = proto.Unmarshal(packet, resp); err != nil {
		err = broken(ctx, err)
	} else if e := resp.Error; e != nil && e.Refused {
		err = fmt.Errorf("%s: %w", e.Text, errRefused)
	} else if e != nil {
		err = rpc.Received(e.Code, e.Text)
	}
	if err != nil && f != nil {
		f.Close()
	}
	if err != nil {
		return resp, nil, err
	}
	return resp, f, nil
}

func broken(ctx context.Context, err error) error {
	if e := ctx.Err(); e != nil {
		return e
	}
	return fmt.Errorf("%v: %w", err, errBroken)
}
