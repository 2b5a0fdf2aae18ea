// Package fdpass exchanges short packets with the process at the other end of a
// unix socket, each with at most one open file. It is how bytes change hands on
// one machine without being copied.
//
// The socket is SOCK_SEQPACKET: a packet is read whole or not at all. Whoever
// asks sends one packet and waits for the answer before the next, so that at
// most one is under way in each direction. That is held at the sending end: to
// somebody who does not take what was sent nothing more is sent, and no peer can
// make this process hold more of its files in flight than it has connections.
//
// Files come with a packet only where they are wanted. One that came with
// another packet, and each but the first of a packet, is closed, and the
// connection is at its end: who says what is not understood is not listened to.
package fdpass

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/errdefs"
)

// Network is the kind of socket, as package net calls it.
const Network = "unixpacket"

// PacketMax is how long a packet is at most, in bytes.
const PacketMax = 64 << 10

// ErrProtocol says that the peer did not keep to the rules above. The
// connection is of no more use. It is an [errdefs.ErrInvalidArgument].
var ErrProtocol = fmt.Errorf("the peer breaks the rules of the socket: %w", errdefs.ErrInvalidArgument)

// dialKind gives a failed connect the kind that callers decide by.
func dialKind(path string, err error) error {
	var kind error = errdefs.ErrUnavailable
	if errors.Is(err, fs.ErrPermission) {
		kind = errdefs.ErrPermissionDenied
	}
	return fmt.Errorf("socket %s: %v: %w", path, err, kind)
}
