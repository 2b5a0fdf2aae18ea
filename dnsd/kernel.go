package dnsd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// sockets is how this package comes to its sockets, so that a test need not have
// the addresses.
type sockets interface {
	// Listen binds an address that may not be there yet.
	Listen(ctx context.Context, at netip.AddrPort) (*net.UDPConn, net.Listener, error)
}

type kernel struct{}

func (kernel) Listen(ctx context.Context, at netip.AddrPort) (*net.UDPConn, net.Listener, error) {
	// A bridge has its address when the first container is connected.
	free := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		control := c.Control(func(fd uintptr) {
			if at.Addr().Is4() {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
			}
		})
		return errors.Join(control, err)
	}}
	free.SetMultipathTCP(false)
	packets, err := free.ListenPacket(ctx, "udp", at.String())
	if err != nil {
		return nil, nil, err
	}
	// Where a test lets the kernel choose the port it is one for both.
	streams, err := free.Listen(ctx, "tcp", packets.LocalAddr().String())
	if err != nil {
		packets.Close()
		return nil, nil, err
	}
	return packets.(*net.UDPConn), streams, nil
}
