package rpc

import (
	"context"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/gantryd/gantry/services/namespace"
)

// MessageMax is how large a message is at most, in bytes, both ways; it is
// containerd's.
const MessageMax = 16 << 20

// How many bytes a sender may be ahead of who reads, by call and by connection.
// That they are fixed keeps gRPC from measuring the connection with a ping in
// every small call; a unix socket has no distance to find out.
const (
	window     = 2 << 20
	connWindow = 8 << 20
)

// buffer is how many bytes are written to a socket at once.
const buffer = 64 << 10

// PeerWait is how long a call waits for a peer that is not there, as while it
// restarts.
const PeerWait = 5 * time.Second

// The headers in which containerd's clients name the namespace and the lease of
// a call.
const (
	headerNamespace = "containerd-namespace"
	headerLease     = "containerd-lease"
)

// Scope reads the namespace and lease of an incoming call from containerd's
// headers and checks them. Of a header that is repeated the first counts.
func Scope(ctx context.Context) (namespace.Scope, error) {
	first := func(key string) string {
		if v := metadata.ValueFromIncomingContext(ctx, key); len(v) > 0 {
			return v[0]
		}
		return ""
	}
	s := namespace.Scope{Name: first(headerNamespace), Lease: first(headerLease)}
	return s, s.Check()
}

// WithScope puts a scope into the headers of an outgoing call, in place of one
// that was there.
func WithScope(ctx context.Context, s namespace.Scope) context.Context {
	md, ok := metadata.FromOutgoingContext(ctx)
	if ok {
		md = md.Copy()
	} else {
		md = metadata.MD{}
	}
	for key, value := range map[string]string{headerNamespace: s.Name, headerLease: s.Lease} {
		if value == "" {
			delete(md, key)
			continue
		}
		md.Set(key, value)
	}
	return metadata.NewOutgoingContext(ctx, md)
}
