//go:build !linux

package rpc

import (
	"net"
	"os"
)

// Elsewhere only clients run, and the peer of a client is not asked for its
// name.
func own() Peer { return Peer{PID: int32(os.Getpid()), Own: true} }

func credentialsOf(*net.UnixConn) (Peer, error) { return Peer{UID: ^uint32(0)}, nil }
