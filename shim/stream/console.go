package stream

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const consoleTime = 10 * time.Second // for a terminal to arrive once the OCI runtime has returned

// A consoleSocket is where the OCI runtime sends the terminal it has made. It
// is in the bundle, which only we may enter.
type consoleSocket struct {
	name string // relative to the bundle
	path string
	lis  *net.UnixListener
}

func listenConsole(bundle, name string) (*consoleSocket, error) {
	path := filepath.Join(bundle, name)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	dir, err := os.Open(bundle)
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	defer dir.Close()
	// A socket's name has room for 108 bytes, which a bundle's may exceed.
	short := filepath.Join(fdPath(int(dir.Fd())), name)
	lis, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	lis.SetUnlinkOnClose(false)
	return &consoleSocket{name: name, path: path, lis: lis}, nil
}

// receive returns the terminal's master and closes the socket.
func (c *consoleSocket) receive() (*os.File, error) {
	defer c.close()
	c.lis.SetDeadline(time.Now().Add(consoleTime))
	conn, err := c.lis.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(consoleTime))
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 4096), oob) // close-on-exec
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.New("terminal: the OCI runtime did not send it")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("terminal: the OCI runtime did not send it")
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

func (c *consoleSocket) close() {
	c.lis.Close()
	os.Remove(c.path)
}
