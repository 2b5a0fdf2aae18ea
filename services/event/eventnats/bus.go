// Package eventnats carries an [event.Bus] over NATS. What it writes is the wire
// that plugins read: subjects "gantry.v1.<namespace>.<noun>.<verb>" and
// CloudEvents 1.0 in binary mode.
package eventnats

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/services/event"
)

const (
	// callTime bounds a call whose context has no deadline.
	callTime = 5 * time.Second

	// A bus that is back is found within reconnectMax.
	reconnectMin = 20 * time.Millisecond
	reconnectMax = 250 * time.Millisecond
)

// Where answers go: to a question, such as whether an event is on the disk, and
// to a read.
const (
	answersPrefix = "_INBOX.answer"
	readsPrefix   = "_INBOX.read."
)

// AnswersTo returns where the answers to a daemon's questions go. It may listen
// there alone, so that it is not told what others ask and read.
func AnswersTo(daemon string) string { return answersPrefix + "." + daemon }

// A Bus is a connection to the bus.
type Bus struct {
	nc   *nats.Conn
	node string

	// mu guards the fields below it. calls is done when what is under way
	// cannot be answered any more; it is made anew then.
	mu    sync.Mutex
	calls context.Context
	fail  context.CancelCauseFunc
}

var _ event.Bus = (*Bus)(nil)

// Dial returns a connection to the NATS socket of the bus. It does not wait for
// it and connects again for ever; a call while it is not there is
// [errdefs.ErrUnavailable] at once.
func Dial(socket string) (*Bus, error) {
	return connect("nats://gantry", nats.SetCustomDialer(dialer(socket)))
}

// DialAs is Dial for a daemon of the suite.
func DialAs(socket, daemon string) (*Bus, error) {
	return connect("nats://gantry", nats.SetCustomDialer(dialer(socket)), nats.CustomInboxPrefix(AnswersTo(daemon)))
}

// In returns a connection to a server in this process.
func In(server nats.InProcessConnProvider, user, password string) (*Bus, error) {
	return connect("", nats.InProcessServer(server), nats.UserInfo(user, password))
}

func connect(url string, o ...nats.Option) (*Bus, error) {
	node, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("name of this node: %w", err)
	}
	b := &Bus{node: node}
	b.calls, b.fail = context.WithCancelCause(context.Background())
	b.nc, err = nats.Connect(url, append([]nats.Option{
		nats.Name("gantry"),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(),
		nats.IgnoreDiscoveredServers(),
		nats.CustomInboxPrefix(answersPrefix),
		nats.ReconnectBufSize(-1), // an event waits in the outbox, not here
		nats.CustomReconnectDelay(func(attempts int) time.Duration {
			return min(reconnectMin<<min(attempts, 10), reconnectMax)
		}),
		nats.DisconnectErrHandler(func(*nats.Conn, error) {
			b.interrupt(fmt.Errorf("the bus went away: %w", errdefs.ErrUnavailable))
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			// The server does not say to which call it says no.
			if errors.Is(err, nats.ErrPermissionViolation) && !isAnswer(err) {
				b.interrupt(fmt.Errorf("%w: %w", err, errdefs.ErrPermissionDenied))
			}
		}),
	}, o...)...)
	if err != nil {
		return nil, fmt.Errorf("bus: %w", err)
	}
	return b, nil
}

// isAnswer says whether what the server refused was an answer, of which there
// is no call: it answers a question of a server that has ended, or one that was
// answered. Who asked asks again.
func isAnswer(err error) bool {
	return strings.Contains(err.Error(), `Publish to "`+nats.InboxPrefix)
}

// A dialer dials the same socket whatever the address is.
type dialer string

func (d dialer) Dial(string, string) (net.Conn, error) {
	return net.DialTimeout("unix", string(d), time.Second)
}

// SkipTLSHandshake keeps the client from looking at the address.
func (d dialer) SkipTLSHandshake() bool { return true }

// interrupt ends the calls under way, which nobody is going to answer.
func (b *Bus) interrupt(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail(cause)
	b.calls, b.fail = context.WithCancelCause(context.Background())
}

// bound returns ctx that also ends when calls are interrupted.
func (b *Bus) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	b.mu.Lock()
	calls := b.calls
	b.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(calls, func() { cancel(context.Cause(calls)) })
	return ctx, func() { stop(); cancel(nil) }
}

// call is bound with a deadline.
func (b *Bus) call(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := b.bound(ctx)
	if _, ok := ctx.Deadline(); ok {
		return ctx, cancel
	}
	ctx, stop := context.WithTimeout(ctx, callTime)
	return ctx, func() { stop(); cancel() }
}

// kind gives an error of NATS the kind that the contract asks for. outer is the
// caller's context and inner what the call was made with.
func kind(outer, inner context.Context, err error) error {
	switch {
	case err == nil || outer.Err() != nil:
		return outer.Err()
	case inner.Err() != nil && !errors.Is(context.Cause(inner), context.DeadlineExceeded):
		return context.Cause(inner)
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	case errors.Is(err, nats.ErrReconnectBufExceeded): // what the library says when it is not connected
		return fmt.Errorf("the bus is away: %w", errdefs.ErrUnavailable)
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
}

// Close ends the connection.
func (b *Bus) Close() { b.nc.Close() }

// Conn is for what else goes over the same connection: questions to gates.
func (b *Bus) Conn() *nats.Conn { return b.nc }
