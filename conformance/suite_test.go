package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// containerdVersion is whose stock binaries gantry is tried with.
const containerdVersion = "v2.4.2"

// needRoot skips a test that mounts or runs containers, and says so.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it runs containers")
	}
}

// build makes gantry's binaries and the demo image, once per run of the tests.
var build = sync.OnceValues(func() (string, error) {
	c := exec.Command("make", "-s", "-C", "..", "build", "image")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make build image: %w: %s", err, out)
	}
	return filepath.Abs("../bin")
})

// install gets released binaries of other projects by the go command and
// returns the directory they are in. It keeps them for the next run.
func install(t testing.TB, packages ...string) string {
	t.Helper()
	dir, err := filepath.Abs("../.build/stock")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packages {
		path, version, _ := strings.Cut(p, "@")
		bin := filepath.Join(dir, version)
		if _, err := os.Stat(filepath.Join(bin, filepath.Base(path))); err == nil {
			continue
		}
		c := exec.Command("go", "install", p)
		c.Env = append(os.Environ(), "GOBIN="+bin, "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("go install %s: %v: %s", p, err, out)
		}
	}
	return dir
}

// ctrBinary is a stock ctr.
func ctrBinary(t testing.TB) string {
	dir := install(t, "github.com/containerd/containerd/v2/cmd/ctr@"+containerdVersion)
	return filepath.Join(dir, containerdVersion, "ctr")
}

// A suite is gantry, running as six processes on directories of its own.
type suite struct {
	t       testing.TB
	bin     string
	root    string
	state   string
	address string
	within  []string // what runs gantryctl up, if not the test itself
	flags   []string // of gantryctl up, further ones
	cmd     *exec.Cmd
	log     *lockedBuffer
}

// startSuite starts gantry and ends it, its containers and its mounts with the
// test.
func startSuite(t testing.TB) *suite {
	t.Helper()
	return startSuiteAs(t, func(*suite) {})
}

// startSuiteAs is startSuite for a suite that is not like the others: how is
// called before it starts.
func startSuiteAs(t testing.TB, how func(*suite)) *suite {
	t.Helper()
	needRoot(t)
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	// Paths of sockets are short, and t.TempDir's are not.
	dir, err := os.MkdirTemp("", "gantry-")
	if err != nil {
		t.Fatal(err)
	}
	s := &suite{
		t: t, bin: bin,
		root:    filepath.Join(dir, "root"),
		state:   filepath.Join(dir, "state"),
		address: filepath.Join(dir, "gantry.sock"),
	}
	t.Cleanup(func() {
		s.removeContainers()
		s.stop()
		s.sweep(dir)
		if t.Failed() {
			t.Logf("the suite said:\n%s", s.log.tail(200))
		}
	})
	how(s)
	s.start()
	return s
}

func (s *suite) start() {
	s.t.Helper()
	s.log = &lockedBuffer{}
	args := slices.Concat(s.within, []string{filepath.Join(s.bin, "gantryctl"), "--address", s.address,
		"up", "--root", s.root, "--state", s.state}, s.flags)
	s.cmd = exec.Command(args[0], args[1:]...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.eventually(30*time.Second, "the suite is ready", func() error {
		if !strings.Contains(s.log.String(), "ready on") {
			return errors.New("no ready line")
		}
		return nil
	})
}

// stop ends the suite as an operator does. Containers run on.
func (s *suite) stop() {
	if s.cmd == nil || s.cmd.Process == nil || s.cmd.ProcessState != nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	killed := time.AfterFunc(30*time.Second, func() { _ = s.cmd.Process.Kill() })
	_ = s.cmd.Wait()
	if !killed.Stop() {
		s.t.Error("the suite did not stop within 30 s of SIGTERM")
	}
}

func (s *suite) removeContainers() {
	out, err := s.tryCtl("ps", "-o", "json")
	if err != nil {
		return
	}
	var ps []struct {
		ID string `json:"id"`
	}
	if json.Unmarshal([]byte(out), &ps) != nil {
		return
	}
	for _, p := range ps {
		_, _ = s.tryCtl("rm", "-f", p.ID)
	}
}

// sweep ends and unmounts whatever a failed test left below dir, and fails the
// test if there was anything.
func (s *suite) sweep(dir string) {
	for _, pid := range processesOf(dir) {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		s.t.Errorf("left process %d: %s", pid, bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '}))
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for _, line := range strings.Split(string(mounts), "\n") {
		f := strings.Fields(line)
		if len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			s.t.Errorf("left mount %s", f[4])
			_ = unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		s.t.Errorf("remove what the suite left: %v", err)
	}
}

// processesOf returns the processes that name dir in their arguments.
func processesOf(dir string) []int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscanf(e.Name(), "%d", &pid); err != nil || pid == os.Getpid() {
			continue
		}
		b, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if bytes.Contains(b, []byte(dir+"/")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// importDemo imports the demo image and returns its name.
func (s *suite) importDemo() string {
	s.t.Helper()
	s.ctl("image", "import", filepath.Join(s.bin, "demo.tar"))
	return "demo:latest"
}

// ctl runs gantryctl and fails the test if it does.
func (s *suite) ctl(args ...string) string {
	s.t.Helper()
	out, err := s.tryCtl(args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func (s *suite) tryCtl(args ...string) (string, error) {
	return s.command(filepath.Join(s.bin, "gantryctl"), append([]string{"--address", s.address, "--sockets", s.state}, args...)...)
}

// ctr runs a stock ctr and fails the test if it does.
func (s *suite) ctr(args ...string) string {
	s.t.Helper()
	out, err := s.tryCtr(args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func (s *suite) tryCtr(args ...string) (string, error) {
	s.t.Helper()
	return s.command(ctrBinary(s.t), append([]string{"-a", s.address}, args...)...)
}

// command runs a program for a minute at most and returns its standard output.
func (s *suite) command(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	c := exec.CommandContext(ctx, name, args...)
	c.Stdout, c.Stderr = &stdout, &stderr
	c.WaitDelay = time.Second
	if err := c.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args[2:], " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// A daemonStatus is a row of gantryctl status.
type daemonStatus struct {
	Daemon string `json:"daemon"`
	Pid    int    `json:"pid"`
	Health string `json:"health"`
}

// status returns the daemons by name. One that is down has no pid.
func (s *suite) status() map[string]daemonStatus {
	out, _ := s.tryCtl("status", "-o", "json")
	var rows []daemonStatus
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		return nil
	}
	m := make(map[string]daemonStatus, len(rows))
	for _, r := range rows {
		m[r.Daemon] = r
	}
	return m
}

// eventually tries until what holds, for as long as limit.
func (s *suite) eventually(limit time.Duration, what string, try func() error) {
	s.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: not within %v: %v\n%s", what, limit, err, s.log.tail(60))
		}
		<-time.After(20 * time.Millisecond)
	}
}

// A lockedBuffer is written by a process and read by a test.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// tail returns the last n lines.
func (l *lockedBuffer) tail(n int) string {
	lines := strings.Split(l.String(), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
