package conformance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The user of dnsd where systemd starts it, and the group of the sockets, as this
// machine need not have them.
const (
	dnsUser     = 61053
	socketGroup = 61054
)

// withUsers runs a program on a machine that has both, and no others but root.
const withUsers = `#!/bin/sh
set -e
cd DIR
(echo "root:x:0:0::/root:/bin/sh"; echo "gantry-dns:x:USER:USER::/:/bin/false") > passwd
(echo "root:x:0:"; echo "gantry-dns:x:USER:"; echo "gantry:x:GROUP:") > group
mount --bind passwd /etc/passwd
mount --bind group /etc/group
exec DIR/apart "$@"
`

// asUser starts dnsd as its unit does, but for the socket that systemd makes.
const asUser = `#!/bin/sh
set -e
cp STATE/config/dnsd.toml DIR/dnsd.toml
chmod 0644 DIR/dnsd.toml
chmod 0711 STATE/..
chgrp USER STATE
chmod 0731 STATE
exec setpriv --reuid USER --regid USER --groups GROUP --no-new-privs \
	--inh-caps -all,+net_bind_service --ambient-caps -all,+net_bind_service --bounding-set -all,+net_bind_service \
	DIR/dnsd -config DIR/dnsd.toml
`

// leastDNS has up run dnsd as its unit does.
func leastDNS(n *netSuite) {
	t := n.t
	t.Helper()
	words := strings.NewReplacer("DIR", n.dir, "STATE", n.state, "USER", strconv.Itoa(dnsUser), "GROUP", strconv.Itoa(socketGroup))
	bin := filepath.Join(n.dir, "bin")
	n.write(t.(*testing.T), filepath.Join(bin, "dnsd"), words.Replace(asUser))
	n.write(t.(*testing.T), filepath.Join(n.dir, "users"), words.Replace(withUsers))
	n.within[len(n.within)-1] = filepath.Join(n.dir, "users")
	files, err := os.ReadDir(n.bin)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() == "dnsd" {
			continue
		}
		if err := os.Symlink(filepath.Join(n.bin, f.Name()), filepath.Join(bin, f.Name())); err != nil {
			t.Fatal(err)
		}
	}
	// Where the user may go.
	b, err := os.ReadFile(filepath.Join(n.bin, "dnsd"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{n.dir, filepath.Dir(n.dir)} {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	n.write(t.(*testing.T), filepath.Join(n.dir, "dnsd"), string(b))
	n.flags = append(n.flags, "--bin", bin)
}

// dnsd finds the process of this suite's dnsd.
func (n *netSuite) dnsd() (int, error) {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(b), filepath.Join(n.dir, "dnsd.toml")) {
			return strconv.Atoi(strings.Split(p, "/")[2])
		}
	}
	return 0, errors.New("no process of dnsd")
}

// TestContainersReachEachOtherByName has containers on a bridge, and a dnsd with
// no more rights than its unit has, which is ended, killed, and away while what it
// should know happens. When it comes back it knows what is, and not what was.
func TestContainersReachEachOtherByName(t *testing.T) {
	n := startNetSuite(t, leastDNS)
	image := n.importDemo()
	n.ctl("run", "-d", "--name", "web", "-l", "gantry.dev/names=www", "--net", "default", image, "/bin/web")
	get := func(name string) (string, error) {
		return n.tryCtl("run", "--rm", "--net", "default", image, "/bin/get", name)
	}
	reaches := func(when, name string) {
		t.Helper()
		n.eventually(20*time.Second, when+", "+name+" is reached", func() error {
			out, err := get(name)
			if err == nil && !strings.Contains(out, "Hello from container web to 10.87.") {
				err = fmt.Errorf("the other says %q", out)
			}
			return err
		})
	}
	for _, name := range []string{"web", "www", "web.default.gantry.internal"} {
		reaches("at first", name)
	}
	n.ctl("-n", "other", "image", "import", filepath.Join(n.bin, "demo.tar"))
	out, err := n.tryCtl("-n", "other", "run", "--rm", "--net", "default", image, "/bin/get", "web.default.gantry.internal")
	if err == nil || !strings.Contains(out+err.Error(), "no such host") {
		t.Errorf("another namespace gets %q, %v", out, err)
	}
	// The node finds it where containers ask, by its full name.
	demo, err := filepath.Abs("../.build/demo")
	if err != nil {
		t.Fatal(err)
	}
	out, err = n.inside(fmt.Sprintf(`unshare -m sh -c "mount --bind %s/netd/default/resolv.conf /etc/resolv.conf && '%s' get web.default.gantry.internal"`, n.state, demo))
	if err != nil || !strings.Contains(out, "Hello from container web to 10.87.0.1.") {
		t.Errorf("the node gets %q, %v", out, err)
	}
	status, err := n.dnsd()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", status)); err != nil ||
		!strings.Contains(string(b), fmt.Sprintf("Uid:\t%d\t%[1]d", dnsUser)) || !strings.Contains(string(b), "CapEff:\t0000000000000400\n") {
		t.Errorf("dnsd has more than its unit gives it: %v\n%s", err, b)
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		old, err := n.dnsd()
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(old, signal); err != nil {
			t.Fatal(err)
		}
		n.eventually(20*time.Second, "another dnsd is there", func() error {
			if now, err := n.dnsd(); err != nil || now == old {
				return fmt.Errorf("process %d, %v", now, err)
			}
			return nil
		})
		reaches("after "+signal.String(), "web")
	}

	// What happens while it is not there it is not told.
	n.ctl("run", "-d", "--name", "asker", "--net", "default", image, "/bin/counter")
	ask := func(name string) (string, error) { return n.tryCtl("exec", "asker", "/bin/get", name) }
	pid, err := n.dnsd()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	n.ctl("stop", "web")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone := func(when string) {
		t.Helper()
		n.eventually(20*time.Second, when+", there is no such name", func() error {
			out, err := ask("web")
			if err == nil || !strings.Contains(out+err.Error(), "no such host") {
				return errors.Join(errors.New("it gets "+out), err)
			}
			return nil
		})
	}
	gone("stopped while dnsd was not there")
	n.ctl("rm", "web")
	n.ctl("run", "-d", "--name", "web", "--net", "default", image, "/bin/web")
	reaches("there again", "web")
	n.ctl("stop", "web")
	gone("stopped")
}
