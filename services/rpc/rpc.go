// Package rpc makes the servers and clients of the suite: message sizes,
// keepalive, errors that keep their kind across a socket, tracing, and who may
// call what.
package rpc

import (
	"context"
	"errors"
	"log/slog"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/namespace"
)

// MessageMax is how large a message is at most, in bytes, both ways; it is
// containerd's.
const MessageMax = 16 << 20

// NewServer returns a server of the named daemon: default deny by peer
// credentials and method, errors translated by [errgrpc], tracing, metrics, and
// internal errors logged once, here.
func NewServer(daemon string, log *slog.Logger, o ...grpc.ServerOption) *grpc.Server { return nil }

// Dial returns a connection to the gRPC server on a unix socket. It does not
// wait for it. A call waits up to PeerWait for a peer that is not there, as
// while it restarts, and is then [errdefs.ErrUnavailable].
func Dial(socket string, o ...grpc.DialOption) (*grpc.ClientConn, error) {
	return nil, errors.New("rpc: not written")
}

// Scope reads the namespace and lease of an incoming call from containerd's
// headers and checks them.
func Scope(ctx context.Context) (namespace.Scope, error) { return namespace.Scope{}, nil }

// WithScope puts a scope into the headers of an outgoing call.
func WithScope(ctx context.Context, s namespace.Scope) context.Context { return ctx }
