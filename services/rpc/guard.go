package rpc

import (
	"context"
	"log/slog"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A Guard does for a socket of a daemon's that speaks no gRPC what [NewServer]
// does for one that does: the same table says who may ask, and errors cross it
// as the same kinds.
type Guard struct {
	policy policy
	log    *slog.Logger
}

// NewGuard returns the guard of the named daemon. Of the options of a server it
// heeds [WithOperators].
func NewGuard(daemon string, log *slog.Logger, o ...grpc.ServerOption) Guard {
	return Guard{policy: newPolicy(daemon, o), log: log}
}

// Identify asks the kernel who connected.
func (Guard) Identify(c net.Conn) (Peer, error) { return identify(c) }

// Check is [errdefs.ErrPermissionDenied] unless who may call method.
func (g Guard) Check(who Peer, method string) error { return g.policy.allow(who, method) }

// Finish turns the error of a method into what is sent, and logs it if it is
// internal: a code of gRPC's and a text.
func (g Guard) Finish(ctx context.Context, method string, err error) (code uint32, text string) {
	if born(err) {
		g.log.ErrorContext(ctx, "call failed inside", "method", method, "err", err)
	}
	s := status.Convert(toWire(err))
	return uint32(s.Code()), s.Message()
}

// Received is the error that [Guard.Finish] sent.
func Received(code uint32, text string) error {
	return fromWire(status.Error(codes.Code(code), text))
}
