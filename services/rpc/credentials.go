package rpc

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// A Peer is the process at the other end of a unix socket, as the kernel knows
// it since it connected.
type Peer struct {
	UID    uint32
	GID    uint32
	PID    int32
	Groups []uint32 // supplementary
	Own    bool     // this very process, over a connection in memory
}

// AuthType implements [credentials.AuthInfo].
func (Peer) AuthType() string { return "peercred" }

// GetCommonAuthInfo says that what crosses a unix socket is private.
func (Peer) GetCommonAuthInfo() credentials.CommonAuthInfo {
	return credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
}

// PeerOf returns the peer of an incoming call. A connection on which the kernel
// vouches for nobody has none.
func PeerOf(ctx context.Context) (Peer, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, false
	}
	who, ok := p.AuthInfo.(Peer)
	return who, ok
}

// peerCredentials are the credentials of both ends of a unix socket: nothing is
// sent, the kernel is asked.
type peerCredentials struct{}

func (peerCredentials) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p, err := identify(c)
	if err != nil {
		return nil, nil, err
	}
	return c, p, nil
}

func (p peerCredentials) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return p.ServerHandshake(c)
}

func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

func (p peerCredentials) Clone() credentials.TransportCredentials { return p }

func (peerCredentials) OverrideServerName(string) error { return nil }

// identify finds out who is at the other end of c.
func identify(c net.Conn) (Peer, error) {
	switch c := c.(type) {
	case *net.UnixConn:
		return credentialsOf(c)
	default:
		if c.RemoteAddr().Network() == "bufconn" {
			return own(), nil
		}
		return Peer{}, fmt.Errorf("peer on %s: not a unix socket", c.RemoteAddr().Network())
	}
}
