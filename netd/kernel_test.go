package netd

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/network"
)

func TestLinuxKnowsNamespaces(t *testing.T) {
	n, err := linux{}.Open(uint32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	if !n.node {
		t.Error("our own network is not the node's")
	}
	if _, err := (linux{}).Open(1 << 30); !errdefs.IsNotFound(err) {
		t.Errorf("no process: got %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, file + "-none"} {
		if id, ok, err := (linux{}).Pinned(path); ok || err != nil {
			t.Errorf("%s is namespace %v, %v", path, id, err)
		}
	}
}

// TestAPinOutlivesTheProcess has a process with a network of its own, which
// ends.
func TestAPinOutlivesTheProcess(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	c := exec.Command("sleep", "300")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	end := func() { _ = c.Process.Kill(); _ = c.Wait() }
	t.Cleanup(end)
	n, err := linux{}.Open(uint32(c.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if n.node {
		t.Error("its network is the node's")
	}
	if err := (linux{}).RefuseRouters(n); err != nil {
		t.Error(err)
	}
	if again, err := (linux{}).Open(uint32(os.Getpid())); err != nil || !again.node {
		t.Errorf("we are in another network now: %+v, %v", again, err)
	}
	path := filepath.Join(t.TempDir(), "pins", "one")
	t.Cleanup(func() {
		if err := (linux{}).Unpin(path); err != nil {
			t.Error(err)
		}
	})
	if err := (linux{}).Pin(n, path); err != nil {
		t.Fatal(err)
	}
	n.close()
	end()
	id, ok, err := linux{}.Pinned(path)
	if err != nil || !ok || id != n.id {
		t.Errorf("it is pinned as %v, %t, %v, want %v", id, ok, err, n.id)
	}
	for range 2 {
		if err := (linux{}).Unpin(path); err != nil {
			t.Error(err)
		}
	}
	if _, ok, err := (linux{}).Pinned(path); ok || err != nil {
		t.Errorf("after Unpin: %t, %v", ok, err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
}

func TestPortsOfTheNodeAreTaken(t *testing.T) {
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	_, text, _ := net.SplitHostPort(tcp.Addr().String())
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	p := network.Port{Host: uint16(n), Container: 80, Protocol: "tcp"}
	if err := (linux{}).Taken(p); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("on all addresses, where one is listened on: got %v", err)
	}
	p, err = network.ParsePort("192.0.2.1:80:80")
	if err != nil {
		t.Fatal(err)
	}
	if err := (linux{}).Taken(p); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("on an address that is not the node's: got %v", err)
	}
	tcp.Close()
	if err := (linux{}).Taken(network.Port{Host: uint16(n), Container: 80, Protocol: "tcp"}); err != nil {
		t.Errorf("when nobody listens: got %v", err)
	}
}
