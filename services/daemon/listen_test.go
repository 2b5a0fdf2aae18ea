package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

func config(t *testing.T) Common {
	t.Helper()
	c := Default()
	c.Sockets = t.TempDir()
	return c
}

func TestSocketForAllIsOpenToAll(t *testing.T) {
	cfg := config(t)
	path := filepath.Join(cfg.Sockets, "open.sock")
	lis, err := ListenForAll(cfg, "open", path)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := fi.Mode(); got != os.ModeSocket|0o666 {
		t.Errorf("mode %v, want a socket of 0666", got)
	}
}

func TestSocketHasModeAndGroup(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	cfg := config(t)
	cfg.Sockets = filepath.Join(cfg.Sockets, "made", "by-listen")
	if g, err := user.LookupGroup("games"); err == nil && os.Getuid() == 0 {
		cfg.Group = g.Name
	}
	lis, err := Listen(cfg, "testd")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.Sockets, "testd.sock")
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := fi.Mode(); got != os.ModeSocket|0o660 {
		t.Errorf("mode %v, want a socket of 0660", got)
	}
	if g, err := user.LookupGroup(cfg.Group); err == nil {
		if got := strconv.Itoa(int(fi.Sys().(*syscall.Stat_t).Gid)); got != g.Gid {
			t.Errorf("group %s, want %s", got, g.Gid)
		}
	}
	if err := lis.Close(); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(cfg.Sockets)
	if err != nil || len(left) != 1 || left[0].Name() != "testd.sock.lock" {
		t.Errorf("after Close: %v, %v, want the lock only", left, err)
	}
}

func TestSocketIsBornPrivate(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "s")
	lis, err := listenPrivately("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	if fi, err := os.Lstat(path); err != nil || fi.Mode() != os.ModeSocket|0o600 {
		t.Errorf("got %v, %v, want a socket of 0600", fi.Mode(), err)
	}
}

func TestUnknownGroupIsAnError(t *testing.T) {
	cfg := config(t)
	cfg.Group = "no-such-group"
	if lis, err := Listen(cfg, "testd"); err == nil {
		lis.Close()
		t.Error("no error")
	}
}

func TestSocketInUse(t *testing.T) {
	cfg := config(t)
	first, err := Listen(cfg, "testd")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(cfg, "testd"); !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "socket in use") {
		t.Errorf("second: got %v, want socket in use", err)
	}
	c, err := net.Dial("unix", first.Addr().String())
	if err == nil {
		c.Close()
	}
	if _, err := net.Dial("unix", filepath.Join(cfg.Sockets, "testd.sock")); err != nil {
		t.Errorf("the first one's socket is gone: %v", err)
	}
	first.Close()
	again, err := Listen(cfg, "testd")
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	again.Close()
}

func TestSocketOfSomebodyElseIsInUse(t *testing.T) {
	cfg := config(t)
	path := filepath.Join(cfg.Sockets, "testd.sock")
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := Listen(cfg, "testd"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("got %v, want already exists", err)
	}
}

func TestSocketLeftBehindIsReplaced(t *testing.T) {
	cfg := config(t)
	path := filepath.Join(cfg.Sockets, "testd.sock")
	other, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	other.SetUnlinkOnClose(false)
	other.Close()
	lis, err := Listen(cfg, "testd")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestFileInTheWayIsKept(t *testing.T) {
	cfg := config(t)
	path := filepath.Join(cfg.Sockets, "testd.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(cfg, "testd"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v, want failed precondition", err)
	}
	if b, err := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file is now %q, %v", b, err)
	}
}

func TestOneOfManyStartsWins(t *testing.T) {
	cfg := config(t)
	for round := range 20 {
		var wg sync.WaitGroup
		won := make(chan net.Listener, 8)
		for range 8 {
			wg.Go(func() {
				lis, err := Listen(cfg, "testd")
				switch {
				case err == nil:
					won <- lis
				case !errdefs.IsAlreadyExists(err):
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		wg.Wait()
		close(won)
		var winners int
		for lis := range won {
			winners++
			if _, err := net.Dial("unix", filepath.Join(cfg.Sockets, "testd.sock")); err != nil {
				t.Errorf("round %d: the winner's socket: %v", round, err)
			}
			lis.Close()
		}
		if winners != 1 {
			t.Fatalf("round %d: %d of 8 have the socket, want 1", round, winners)
		}
	}
}

// TestSocketThatSystemdPassed starts itself again the way systemd starts a
// daemon: sockets from descriptor 3 on, their names in the environment.
func TestSocketThatSystemdPassed(t *testing.T) {
	if dir := os.Getenv("DAEMON_TEST_PASSED"); dir != "" {
		listenPassed(t, dir)
		return
	}
	dir := t.TempDir()
	var files []*os.File
	for _, name := range []string{"nats", "testd"} {
		lis, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "systemd-"+name)})
		if err != nil {
			t.Fatal(err)
		}
		defer lis.Close()
		f, err := lis.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run='^TestSocketThatSystemdPassed$' -test.v`, os.Args[0])
	cmd.Env = append(os.Environ(), "LISTEN_FDS=2", "LISTEN_FDNAMES=nats:testd", "DAEMON_TEST_PASSED="+dir)
	cmd.ExtraFiles = files
	out, err := cmd.CombinedOutput()
	want := fmt.Sprintf("testd on %s/systemd-testd\nnats on %s/systemd-nats\nother on %s/other.sock\n", dir, dir, dir)
	if err != nil || !strings.Contains(string(out), want) {
		t.Errorf("got %v\n%s\nwant %s", err, out, want)
	}
	if _, err := os.Lstat(filepath.Join(dir, "systemd-testd")); err != nil {
		t.Errorf("systemd's socket after the daemon: %v", err)
	}
}

func listenPassed(t *testing.T, dir string) {
	cfg := Default()
	cfg.Sockets = dir
	for _, name := range []string{"testd", "nats", "other"} {
		lis, err := Listen(cfg, name)
		if err != nil {
			t.Fatal(err)
		}
		addr, err := syscall.Getsockname(fd(t, lis))
		if err != nil {
			t.Fatal(err)
		}
		bound := addr.(*syscall.SockaddrUnix).Name
		if name == "other" {
			bound = filepath.Join(dir, "other.sock")
			_, err := os.Lstat(bound)
			if err != nil {
				t.Error(err)
			}
		}
		fmt.Println(name, "on", bound)
		lis.Close()
	}
}

func fd(t *testing.T, lis net.Listener) (n int) {
	t.Helper()
	c, ok := lis.(syscall.Conn)
	if !ok {
		t.Fatalf("%T is no syscall.Conn", lis)
	}
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { n = int(fd) })
	}
	if err = errors.Join(err); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestSocketOfPackets is one on which whole packets are exchanged, and that a
// second daemon does not take from the first.
func TestSocketOfPackets(t *testing.T) {
	cfg := config(t)
	path := filepath.Join(cfg.Sockets, "testd.packets.sock")
	lis, err := ListenPackets(cfg, "testd.packets", path)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("unixpacket", path); err != nil {
		t.Errorf("dial: %v", err)
	} else {
		c.Close()
	}
	if _, err := ListenPackets(cfg, "testd.packets", path); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second listener: got %v, want already exists", err)
	}
	lis.Close()
	// One that was left behind is replaced.
	stale, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	if lis, err = ListenPackets(cfg, "testd.packets", path); err != nil {
		t.Fatal(err)
	}
	lis.Close()
}
