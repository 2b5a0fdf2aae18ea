package fdpass

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Conn is one end of a connection. One goroutine uses it at a time, but for
// Close and SetDeadline.
type Conn struct {
	u   *net.UnixConn
	raw syscall.RawConn

	// mu guards stopped, and the deadline of reads with it.
	mu      sync.Mutex
	stopped bool // nothing is received any more
}

// Dial connects to the socket at path: [errdefs.ErrUnavailable] if nobody
// listens there, and [errdefs.ErrPermissionDenied] if this process may not.
func Dial(ctx context.Context, path string) (*Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, Network, path)
	if err != nil {
		return nil, dialKind(path, err)
	}
	return newConn(c.(*net.UnixConn))
}

func newConn(u *net.UnixConn) (*Conn, error) {
	raw, err := u.SyscallConn()
	if err != nil {
		u.Close()
		return nil, err
	}
	return &Conn{u: u, raw: raw}, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.u.Close() }

// SetDeadline bounds Send and Receive, those under way too; the zero time is no
// bound. What runs into it is [os.ErrDeadlineExceeded].
func (c *Conn) SetDeadline(t time.Time) {
	_ = c.u.SetWriteDeadline(t) // fails for one that is closed
	c.setReadDeadline(t)
}

func (c *Conn) setReadDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stopped {
		_ = c.u.SetReadDeadline(t) // as above
	}
}

// past is a deadline that is over.
func past() time.Time { return time.Unix(1, 0) }

// stopReceiving ends Receive, now and from now on.
func (c *Conn) stopReceiving() {
	c.setReadDeadline(past())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
}

// Send sends a packet, and with it f unless it is nil. The file stays the
// caller's. It is [ErrProtocol] if the peer has not taken what was sent before.
func (c *Conn) Send(packet []byte, f *os.File) error {
	if len(packet) == 0 || len(packet) > PacketMax {
		return fmt.Errorf("packet of %d bytes: %w", len(packet), ErrProtocol)
	}
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	var failed error
	err := c.raw.Write(func(fd uintptr) bool {
		var waiting int
		if waiting, failed = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); failed != nil {
			return true
		}
		if waiting > 0 {
			failed = fmt.Errorf("what was sent before is not taken: %w", ErrProtocol)
			return true
		}
		for {
			_, failed = unix.SendmsgN(int(fd), packet, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if !errors.Is(failed, unix.EINTR) {
				return !errors.Is(failed, unix.EAGAIN)
			}
		}
	})
	runtime.KeepAlive(f)
	return errors.Join(err, failed)
}

// Receive waits for a packet, and returns it with the file that came with it,
// which is the caller's to close, or nil. It is [io.EOF] when the peer is gone,
// and [ErrProtocol] for a packet that is too long or has more than one file.
func (c *Conn) Receive() ([]byte, *os.File, error) {
	var packet []byte
	var f *os.File
	var failed error
	err := c.raw.Read(func(fd uintptr) bool {
		packet, f, failed = receive(int(fd))
		return !errors.Is(failed, unix.EAGAIN)
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, nil, err
	}
	return packet, f, nil
}

// rightsSpace is room for one descriptor, which the kernel rounds up to two.
const rightsSpace = 24

// receive takes a packet if there is one, else it is EAGAIN. A connection that
// waits has no buffer: the packet says how long it is.
func receive(fd int) ([]byte, *os.File, error) {
	size, err := peek(fd)
	if err != nil {
		return nil, nil, err
	}
	if size > PacketMax {
		return nil, nil, fmt.Errorf("packet of %d bytes: %w", size, ErrProtocol)
	}
	packet := make([]byte, size)
	var rights [rightsSpace]byte
	n, rightsSize, flags, _, err := unix.Recvmsg(fd, packet, rights[:], unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, nil, err
	}
	files, err := descriptors(rights[:rightsSize])
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || n != size || len(files) > 1 {
		err = fmt.Errorf("packet that is cut, or has several files: %w", ErrProtocol)
	}
	if err != nil {
		for _, d := range files {
			unix.Close(d)
		}
		return nil, nil, err
	}
	if len(files) == 0 {
		return packet, nil, nil
	}
	return packet, os.NewFile(uintptr(files[0]), "passed"), nil
}

// peek returns how long the next packet is. There is none of no bytes: that is
// the end.
func peek(fd int) (int, error) {
	for {
		size, _, err := unix.Recvfrom(fd, nil, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECONNRESET), err == nil && size == 0:
			return 0, io.EOF
		}
		return size, err
	}
}

// descriptors are those that a control message has. They are in this process
// now, whatever else is wrong.
func descriptors(rights []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, fmt.Errorf("control message: %v: %w", err, ErrProtocol)
	}
	var all []int
	for i := range messages {
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil {
			all = append(all, fds...)
		}
	}
	return all, nil
}

// Gone says whether the peer has hung up. It does not wait.
func (c *Conn) Gone() bool {
	gone := true
	err := c.raw.Control(func(fd uintptr) {
		_, err := peek(int(fd))
		gone = err != nil && !errors.Is(err, unix.EAGAIN)
	})
	return gone || err != nil
}

// Watch calls hangup, once, if the peer hangs up or says something before stop
// is called: for what takes long and is of no use to nobody. Stop returns when
// hangup is not going to be called any more; until then nobody receives.
func (c *Conn) Watch(hangup func()) (stop func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := c.raw.Read(func(fd uintptr) bool {
			_, err := peek(int(fd))
			return !errors.Is(err, unix.EAGAIN)
		})
		if err == nil {
			hangup()
		}
	}()
	return func() {
		c.setReadDeadline(past())
		<-done
		c.setReadDeadline(time.Time{})
	}
}
