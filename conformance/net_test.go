package conformance

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// apart runs a program in a network of its own, and in a mount namespace of its
// own in which nothing of this machine is written to by plugins.
const apart = `set -e
mount -t tmpfs tmpfs /run
mkdir -p /var/lib/cni
mount -t tmpfs tmpfs /var/lib/cni
ip link set lo up
exec "$@"`

// trap is a plugin that runs the real one, and kills netd before or after it
// where it is told to.
const trap = `#!/bin/sh
spring() {
	rm DIR/NAME-$CNI_COMMAND-$1 2>/dev/null && kill -9 $(grep -l 'CONFIG/netd[.]toml' /proc/[0-9]*/cmdline | tr -dc '0-9\n')
}
spring before
REAL/NAME
status=$?
spring after
exit $status
`

// A netSuite is a suite with netd, in a network of its own.
type netSuite struct {
	*suite
	dir string // of the traps
}

const realPlugins = "/usr/lib/cni"

// startNetSuite starts one. more is called before it starts.
func startNetSuite(t *testing.T, more ...func(*netSuite)) *netSuite {
	t.Helper()
	needRoot(t)
	for _, program := range []string{realPlugins + "/bridge", "iptables", "unshare", "nsenter", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("needs containernetworking-plugins, iptables, util-linux and iproute2: make deps: ", err)
		}
	}
	n := &netSuite{dir: t.TempDir()}
	plugins := filepath.Join(n.dir, "plugins")
	n.write(t, filepath.Join(n.dir, "apart"), "#!/bin/sh\n"+apart+"\n")
	n.write(t, filepath.Join(n.dir, "config", "netd.toml"), fmt.Sprintf("plugins = [%q, %q]\n", plugins, realPlugins))
	n.suite = startSuiteAs(t, func(s *suite) {
		for _, name := range []string{"bridge", "host-local", "portmap"} {
			n.write(t, filepath.Join(plugins, name), strings.NewReplacer("DIR", n.dir, "NAME", name, "REAL", realPlugins, "CONFIG", s.state+"/config").Replace(trap))
		}
		s.within = []string{"unshare", "-n", "-m", "--propagation", "private", filepath.Join(n.dir, "apart")}
		s.flags = []string{"--net", "--config", filepath.Join(n.dir, "config")}
		n.suite = s
		for _, f := range more {
			f(n)
		}
	})
	return n
}

func (n *netSuite) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// inside runs a command in the node's network.
func (n *netSuite) inside(command string) (string, error) {
	out, err := exec.Command("nsenter", "-t", strconv.Itoa(n.cmd.Process.Pid), "-n", "-m", "sh", "-c", command).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", command, err, out)
	}
	return string(out), nil
}

// left is everything that a connected container leaves on the node.
func (n *netSuite) left() (string, error) {
	return n.inside(`ip -o link | sed 's/^[0-9]*: //; s/ .*//'; iptables -t nat -S; iptables -t filter -S
grep -l . /var/lib/cni/gantry/default/*.*.*.* 2>/dev/null || true
grep -c nsfs /proc/self/mountinfo || true
ls ` + filepath.Join(n.root, "netd/attachments"))
}

// back waits until nothing is left but what was.
func (n *netSuite) back(what, was string) {
	n.t.Helper()
	n.eventually(20*time.Second, what, func() error {
		now, err := n.left()
		if err == nil && now != was {
			err = fmt.Errorf("there is\n%s\nand was\n%s", now, was)
		}
		return err
	})
}

func (n *netSuite) mustLeft() string {
	n.t.Helper()
	left, err := n.left()
	if err != nil {
		n.t.Fatal(err)
	}
	return left
}

// TestContainersAreOnANetwork has two containers reach each other, and the node
// a port that one publishes, while netd is killed again and again among the plugins
// that it runs. Every container starts, and starts connected; and what they had
// on the node goes with them.
func TestContainersAreOnANetwork(t *testing.T) {
	n := startNetSuite(t)
	image := n.importDemo()
	publish := []string{"--net", "default", "-p", "8081:80"}
	run := func(args ...string) (string, error) {
		return n.tryCtl(append(append([]string{"run", "--rm"}, publish...), append([]string{image}, args...)...)...)
	}
	if _, err := run("/bin/true"); err != nil { // makes what is the network's own
		t.Fatal(err)
	}
	n.eventually(20*time.Second, "the first is disconnected", func() error {
		if left := n.mustLeft(); strings.Contains(left, "veth") || strings.Contains(left, "gantry-") {
			return errors.New(left)
		}
		return nil
	})
	empty := n.mustLeft()

	n.ctl("run", "-d", "--name", "web", "--net", "default", "-p", "8080:80", image, "/bin/web")
	address := strings.Fields(strings.Split(n.ctl("ps"), "\n")[1])
	web := address[len(address)-1]
	demo, err := filepath.Abs("../.build/demo")
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"127.0.0.1:8080", "10.87.0.1:8080", web + ":80"} {
		n.eventually(20*time.Second, "the node gets the page at "+at, func() error {
			_, err := n.inside("'" + demo + "' get " + at)
			return err
		})
	}
	// The node takes no advertisement of a router from a container.
	if ra, err := n.inside("cat /proc/sys/net/ipv6/conf/gantry0/accept_ra 2>/dev/null || echo 0"); err != nil || strings.TrimSpace(ra) != "0" {
		t.Errorf("accept_ra of the bridge is %q, %v", ra, err)
	}
	// Nor does another container.
	const acceptRA = "/proc/sys/net/ipv6/conf/eth0/accept_ra"
	if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
		if ra := n.ctl("exec", "web", "/bin/cat", acceptRA); strings.TrimSpace(ra) != "0" {
			t.Errorf("accept_ra of a container is %q", ra)
		}
	}
	if out, err := n.tryCtl("run", "--rm", "--net", "default", "-p", "8080:80", image, "/bin/true"); err == nil || !strings.Contains(err.Error(), "container default/web") {
		t.Errorf("a port that is published is published again: %s, %v", out, err)
	}
	one := n.mustLeft()

	// Before the first plugin; in the midst of one, with an address; with an
	// interface; and with everything, which is not on record yet.
	for _, at := range []struct{ plugin, when string }{
		{"bridge", "before"}, {"host-local", "after"}, {"bridge", "after"}, {"portmap", "after"},
	} {
		for _, verb := range []string{"ADD", "DEL"} {
			n.write(t, filepath.Join(n.dir, at.plugin+"-"+verb+"-"+at.when), "")
		}
		out, err := run("/bin/get", web)
		if err != nil || !strings.Contains(out, "Hello from container web to 10.87.") {
			t.Errorf("netd is killed %s %s: the other container gets %q, %v", at.when, at.plugin, out, err)
		}
		n.back(fmt.Sprintf("all is collected after netd was killed %s %s", at.when, at.plugin), one)
		if left, _ := filepath.Glob(filepath.Join(n.dir, at.plugin+"-*")); len(left) > 0 {
			t.Errorf("netd was not killed at %v", left)
		}
	}
	// Who removes one and starts another has its port at once.
	n.ctl("rm", "-f", "web")
	n.ctl("run", "--rm", "--net", "default", "-p", "8080:80", image, "/bin/true")
	n.back("all is collected at the end", empty)
}
