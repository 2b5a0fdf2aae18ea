package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/fdpass"
	"github.com/gantryd/gantry/services/suite"
)

// Listen returns the socket that systemd passed under the daemon's name, or
// binds <sockets>/<name>.sock as [ListenAt] does.
func Listen(cfg Common, name string) (net.Listener, error) {
	return ListenAt(cfg, name, suite.Socket(cfg.Sockets, name))
}

// ListenAt returns the socket that systemd passed under name (its
// FileDescriptorName), or binds path, 0660, for the config's group. A socket on
// which somebody listens is [errdefs.ErrAlreadyExists]; one that was left
// behind is replaced.
func ListenAt(cfg Common, name, path string) (net.Listener, error) {
	return listenAt(cfg, "unix", name, path, modeGroup)
}

// ListenForAll is ListenAt for a socket that every user may connect to, 0666:
// who is let in is up to the daemon.
func ListenForAll(cfg Common, name, path string) (net.Listener, error) {
	return listenAt(cfg, "unix", name, path, modeAll)
}

// ListenPackets is ListenAt for a socket of package fdpass.
func ListenPackets(cfg Common, name, path string) (net.Listener, error) {
	return listenAt(cfg, fdpass.Network, name, path, modeGroup)
}

// Modes of sockets that are not systemd's.
const (
	modeGroup = 0o660
	modeAll   = 0o666
)

func listenAt(cfg Common, network, name, path string, mode os.FileMode) (net.Listener, error) {
	lis, err := passed(name)
	if lis == nil && err == nil {
		lis, err = bind(network, path, cfg.Group, mode)
	}
	if err == nil && lis.Addr().Network() != network {
		lis.Close()
		err = fmt.Errorf("systemd passed a socket of another kind (%s, not %s): %w", lis.Addr().Network(), network, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return lis, nil
}

// firstPassed is the first descriptor that systemd passes.
const firstPassed = 3

// passed returns the socket that systemd passed under name, or nil.
func passed(name string) (net.Listener, error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	count, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil {
		return nil, fmt.Errorf("LISTEN_FDS: %w", err)
	}
	for i, n := range strings.Split(os.Getenv("LISTEN_FDNAMES"), ":") {
		if n != name || i >= count {
			continue
		}
		unix.CloseOnExec(firstPassed + i)
		f := os.NewFile(uintptr(firstPassed+i), name)
		defer f.Close()
		return net.FileListener(f)
	}
	return nil, nil
}

// bind makes the socket. The lock is kept for as long as the socket: it says
// that the owner lives, also when two start at once.
func bind(network, path, group string, mode os.FileMode) (net.Listener, error) {
	gid, err := groupID(group)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	lis, err := bindLocked(network, path, gid, mode)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &socket{UnixListener: lis, path: path, lock: lock}, nil
}

func bindLocked(network, path string, gid int, mode os.FileMode) (*net.UnixListener, error) {
	if err := dead(path); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	lis, err := listenPrivately(network, path)
	if err != nil {
		return nil, err
	}
	if gid >= 0 {
		err = os.Chown(path, -1, gid)
	}
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err != nil {
		lis.Close()
		return nil, err
	}
	lis.SetUnlinkOnClose(false)
	return lis, nil
}

// listenPrivately binds a socket that only this user may connect to. The file
// takes its mode from the descriptor, so that it never had another.
func listenPrivately(network, path string) (*net.UnixListener, error) {
	c := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, failed)
	}}
	lis, err := c.Listen(context.Background(), network, path)
	if err != nil {
		return nil, err
	}
	return lis.(*net.UnixListener), nil
}

// dead makes sure that nobody listens on path and that it is no file of
// another kind.
func dead(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("there is a file that is not a socket: %w", errdefs.ErrFailedPrecondition)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	if err == nil {
		c.Close()
	}
	return fmt.Errorf("socket in use: %w", errdefs.ErrAlreadyExists)
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("socket in use: %w", errdefs.ErrAlreadyExists)
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	return f, nil
}

// groupID returns -1 for the process's own group.
func groupID(name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	g, err := user.LookupGroup(name)
	var unknown user.UnknownGroupError
	if name == groupDefault && errors.As(err, &unknown) {
		return -1, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

// A socket is a listener that was bound here.
type socket struct {
	*net.UnixListener
	path string

	// once lets go of the name and the lock, in this order: who gets the lock
	// next finds no socket, or its own.
	once sync.Once
	lock *os.File
}

func (s *socket) Close() error {
	err := s.UnixListener.Close()
	s.once.Do(func() {
		os.Remove(s.path)
		s.lock.Close()
	})
	return err
}
