package netd

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/network"
)

// An nsID is which network namespace it is, for as long as it lives.
type nsID struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

// A netns is a network namespace that cannot go while it is open.
type netns struct {
	id   nsID
	node bool // the node's own, or netd's
	file *os.File
}

func (n *netns) close() {
	if n.file != nil {
		n.file.Close()
	}
}

// kernel is what this package asks of it besides files, and a seam for tests.
type kernel interface {
	// Boot returns which boot this is.
	Boot() (string, error)
	// Open opens the network namespace of a process:
	// [errdefs.ErrNotFound] if there is no such process.
	Open(pid uint32) (*netns, error)
	// Pin keeps a namespace by a name until Unpin, whatever becomes of its
	// processes, of n, and of netd.
	Pin(n *netns, path string) error
	// Pinned returns which namespace has the name, if one has.
	Pinned(path string) (id nsID, ok bool, err error)
	// Unpin lets go of a name, which need not be there.
	Unpin(path string) error
	// RefuseRouters has the interfaces that n will have take no route from
	// whoever advertises one.
	RefuseRouters(n *netns) error
	// Taken is an error if a process of the node listens where p would be.
	Taken(p network.Port) error
}

// linux is the real one.
type linux struct{}

func (linux) Boot() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

func (linux) Open(pid uint32) (*netns, error) {
	f, err := os.Open(filepath.Join("/proc", strconv.FormatUint(uint64(pid), 10), "ns/net"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("process %d: %v: %w", pid, err, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	n := &netns{file: f}
	if n.id, err = identify(int(f.Fd())); err != nil {
		f.Close()
		return nil, err
	}
	for _, own := range []string{"/proc/self/ns/net", "/proc/1/ns/net"} {
		var st unix.Stat_t
		err := unix.Stat(own, &st)
		if errors.Is(err, fs.ErrPermission) {
			continue // of a first process that is not ours to look at, as in a container
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("%s: %w", own, err)
		}
		n.node = n.node || n.id == nsID{st.Dev, st.Ino}
	}
	return n, nil
}

func identify(fd int) (nsID, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return nsID{}, err
	}
	if fs.Type != unix.NSFS_MAGIC {
		return nsID{}, fmt.Errorf("not a namespace: %w", errdefs.ErrFailedPrecondition)
	}
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return nsID{st.Dev, st.Ino}, err
}

func (linux) Pin(n *netns, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return err
	}
	f.Close()
	// The descriptor is mounted and not the process's file: the process may
	// be another by now.
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(int(n.file.Fd())), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin network namespace: %w", err)
	}
	return nil
}

func (linux) Pinned(path string) (nsID, bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nsID{}, false, nil
	}
	if err != nil {
		return nsID{}, false, err
	}
	defer f.Close()
	id, err := identify(int(f.Fd()))
	if errors.Is(err, errdefs.ErrFailedPrecondition) {
		return nsID{}, false, nil // the name without the mount
	}
	return id, err == nil, err
}

func (linux) Unpin(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unpin network namespace: %w", err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// RefuseRouters writes what new interfaces begin with. A kernel without IPv6 has
// no routers to refuse.
func (linux) RefuseRouters(n *netns) error {
	done := make(chan error, 1)
	go func() {
		// This thread is in another network from here on and ends with the
		// goroutine, as it is never unlocked.
		runtime.LockOSThread()
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_ra", []byte("0"), 0)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		done <- err
	}()
	return <-done
}

// Taken binds the port for a moment. The packet filter comes before sockets: a
// container would take the connections of the process that listens.
func (linux) Taken(p network.Port) error {
	host := ""
	if p.HostIP.IsValid() {
		host = p.HostIP.String()
	}
	address := net.JoinHostPort(host, strconv.Itoa(int(p.Host)))
	var err error
	if p.Protocol == "udp" {
		var c net.PacketConn
		if c, err = net.ListenPacket("udp", address); err == nil {
			c.Close()
		}
	} else {
		var l net.Listener
		if l, err = net.Listen("tcp", address); err == nil {
			l.Close()
		}
	}
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("port %s: a process of the node listens there: %w", p, errdefs.ErrFailedPrecondition)
	}
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("port %s: not an address of the node: %w", p, errdefs.ErrFailedPrecondition)
	}
	return err
}
