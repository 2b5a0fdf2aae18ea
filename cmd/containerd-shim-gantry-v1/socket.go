package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	defaultSocketDir = "/run/containerd/s"
	socketPathMax    = 107 // of a unix socket
	dialTime         = time.Second
)

// socketPath is where the shim of an id listens. The name is containerd's, so
// that its tools find the shim.
func socketPath(dir, address, namespace, id string) (string, error) {
	if dir == "" {
		dir = defaultSocketDir
	}
	sum := sha256.Sum256([]byte(filepath.Join(address, namespace, id)))
	path := fmt.Sprintf("%s/%x", filepath.Clean(dir), sum)
	if !filepath.IsAbs(path) || len(path) > socketPathMax {
		return "", fmt.Errorf("socket directory %q: want an absolute path of at most %d bytes", dir, socketPathMax-2*sha256.Size-1)
	}
	return path, nil
}

// listen makes the socket, which only our own user can reach. One that nobody
// listens on any more is replaced.
func listen(path string) (*net.UnixListener, error) {
	if err := ownDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		// Before it has a name: there is no moment at which others may enter.
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	lis, err := config.Listen(context.Background(), "unix", path)
	if errors.Is(err, unix.EADDRINUSE) {
		if answers(path) {
			return nil, fmt.Errorf("a shim of this id runs: %s answers", path)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		lis, err = config.Listen(context.Background(), "unix", path)
	}
	if err != nil {
		return nil, err
	}
	unixLis := lis.(*net.UnixListener)
	unixLis.SetUnlinkOnClose(false) // the name may be another's by then
	return unixLis, nil
}

// ownDir makes a directory that is nobody else's.
func ownDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("socket directory %s is not a directory", dir)
	}
	if owner := st.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
		return fmt.Errorf("socket directory %s belongs to user %d", dir, owner)
	}
	if st.Mode().Perm() != 0o700 {
		return os.Chmod(dir, 0o700)
	}
	return nil
}

func answers(path string) bool {
	conn, err := net.DialTimeout("unix", path, dialTime)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// A socketName is a name that we have given, and may take away once: a name
// given later may have the same inode again.
type socketName struct {
	path string
	file os.FileInfo
	once sync.Once
}

func nameOf(path string) *socketName {
	file, _ := os.Lstat(path)
	return &socketName{path: path, file: file}
}

// remove removes the name unless it is another socket's by now.
func (n *socketName) remove() {
	n.once.Do(func() {
		if now, err := os.Lstat(n.path); err == nil && n.file != nil && os.SameFile(now, n.file) && now.ModTime().Equal(n.file.ModTime()) {
			os.Remove(n.path)
		}
	})
}
