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

// processOf finds the process of a daemon of this suite, by its config file.
func (s *suite) processOf(daemon string) (int, error) {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(b), filepath.Join(s.state, "config", daemon+".toml")) {
			return strconv.Atoi(strings.Split(p, "/")[2])
		}
	}
	return 0, fmt.Errorf("no process of %s", daemon)
}

// TestContainersReachEachOtherByName has two containers on a bridge, and dnsd
// ended, killed, and started while what it should know happens. Where it
// comes back it knows what is, and not what was.
func TestContainersReachEachOtherByName(t *testing.T) {
	n := startNetSuite(t)
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
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		old, err := n.processOf("dnsd")
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(old, signal); err != nil {
			t.Fatal(err)
		}
		n.eventually(20*time.Second, "another dnsd is there", func() error {
			if now, err := n.processOf("dnsd"); err != nil || now == old {
				return fmt.Errorf("process %d, %v", now, err)
			}
			return nil
		})
		reaches("after "+signal.String(), "web")
	}

	// What happens while it is not there it is not told.
	n.ctl("run", "-d", "--name", "asker", "--net", "default", image, "/bin/counter")
	ask := func(name string) (string, error) { return n.tryCtl("exec", "asker", "/bin/get", name) }
	pid, err := n.processOf("dnsd")
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
