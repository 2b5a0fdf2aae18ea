package shim

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/runner"
	"github.com/gantryd/gantry/shim/stream"
)

const (
	defaultBinary = "runc"

	callTime = 5 * time.Minute  // for a call that nobody waits for any more; hooks take what they take
	undoTime = 30 * time.Second // for each step of cleaning up

	letGoTime = 10 * time.Second // for a created process to say that it is there
)

// An ociRuntime is the program that makes containers of bundles.
type ociRuntime struct {
	options runner.Options
	binary  string // path
	root    string // of this namespace
	reaper  *reaper
}

// newRuntime finds the program.
func newRuntime(cfg Config, o runner.Options, reaper *reaper) (*ociRuntime, error) {
	name := o.Binary
	if name == "" {
		name = defaultBinary
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("the OCI runtime %q cannot be run (%v): install runc, or name another runtime's binary: %w", name, errors.Unwrap(err), errdefs.ErrInvalidArgument)
	}
	return &ociRuntime{options: o, binary: path, root: filepath.Join(cmp.Or(o.Root, cfg.RuntimeRoot), cfg.Namespace), reaper: reaper}, nil
}

// knows reports whether the runtime may have a container of that id.
func (r *ociRuntime) knows(id string) bool {
	switch filepath.Base(r.binary) {
	case "runc", "crun":
		_, err := os.Lstat(filepath.Join(r.root, id))
		return !errors.Is(err, os.ErrNotExist)
	}
	return true // its files are its own
}

// create makes a container with a first process that has not started.
func (r *ociRuntime) create(ctx context.Context, id, bundle, pidFile string, s *stream.Set) (int, error) {
	args := []string{"create", "--bundle", bundle, "--pid-file", pidFile}
	if socket := s.Socket(); socket != "" {
		args = append(args, "--console-socket", socket)
	}
	if r.options.NoPivotRoot {
		args = append(args, "--no-pivot")
	}
	if r.options.NoNewKeyring {
		args = append(args, "--no-new-keyring")
	}
	err := r.call(ctx, call{verb: "create", dir: bundle, log: filepath.Join(bundle, "log.json"), stdio: s.Child}, append(args, id)...)
	if err != nil {
		return 0, err
	}
	return readPid(pidFile)
}

// start runs the first process of a container, which was created. If the
// process ends before, dead is closed. With hooks there is more to do than to
// let it go.
func (r *ociRuntime) start(ctx context.Context, id, bundle string, hooks bool, dead <-chan struct{}) error {
	if !hooks && r.letGo(id, dead) {
		return nil
	}
	return r.simple(ctx, bundle, "start", id)
}

// letGo does what "runc start" does, without the process, which takes longer
// than all the rest of a start. The first process of a created container waits
// until somebody reads the byte that it writes into exec.fifo, in runc's
// directory; while that file is there, the container is created to runc. If
// anything is not as expected, nothing has been done, and runc is asked.
func (r *ociRuntime) letGo(id string, dead <-chan struct{}) bool {
	if filepath.Base(r.binary) != defaultBinary {
		return false
	}
	path := filepath.Join(r.root, id, "exec.fifo")
	f, err := stream.OpenFIFO(path, unix.O_RDONLY)
	if err != nil {
		return false
	}
	defer f.Close()
	c, err := f.SyscallConn()
	if err != nil {
		return false
	}
	f.SetReadDeadline(time.Now().Add(letGoTime))
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-dead:
			f.SetReadDeadline(time.Unix(1, 0))
		case <-done:
		}
	}()
	n := 0
	read1 := func(fd uintptr) bool {
		// The end of the file says that the process has not opened it yet.
		n, _ = unix.Read(int(fd), make([]byte, 1))
		return n > 0
	}
	if c.Read(read1) != nil {
		// A process that was let go may be dead before we know that it was:
		// its byte is still there.
		_ = c.Control(func(fd uintptr) { read1(fd) })
	}
	return n > 0 && os.Remove(path) == nil
}

// exec adds a process to a container and starts it. The socket of a terminal
// is named relative to the bundle.
func (r *ociRuntime) exec(ctx context.Context, id, bundle, dir string, s *stream.Set) (int, error) {
	pidFile := filepath.Join(dir, "pid")
	args := []string{"exec", "--detach", "--process", filepath.Join(dir, "process.json"), "--pid-file", pidFile}
	if socket := s.Socket(); socket != "" {
		args = append(args, "--console-socket", socket)
	}
	err := r.call(ctx, call{verb: "exec", dir: bundle, log: filepath.Join(dir, "log.json"), stdio: s.Child}, append(args, id)...)
	if err != nil {
		return 0, err
	}
	return readPid(pidFile)
}

func readPid(file string) (int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("the OCI runtime told no pid: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("the OCI runtime told the pid %q", b)
	}
	return pid, nil
}

// simple runs a verb that starts nothing.
func (r *ociRuntime) simple(ctx context.Context, bundle, verb string, args ...string) error {
	return r.call(ctx, call{verb: verb, dir: bundle, log: filepath.Join(bundle, verb+".log.json")}, append([]string{verb}, args...)...)
}

// A call is how the program is run.
type call struct {
	verb  string
	dir   string
	log   string      // where the program says what went wrong
	stdio [3]*os.File // nil is /dev/null
}

// call runs the program. If ctx ends before, the program is killed. Its
// streams are files: a process that inherits them does not keep us waiting.
func (r *ociRuntime) call(ctx context.Context, c call, args ...string) error {
	global := []string{"--root", r.root, "--log", c.log, "--log-format", "json"}
	if r.options.SystemdCgroup {
		global = append(global, "--systemd-cgroup")
	}
	os.Remove(c.log) // so that an error in it is this call's
	cmd := exec.CommandContext(ctx, r.binary, append(global, args...)...)
	cmd.Dir = c.dir
	if c.stdio[0] != nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = c.stdio[0], c.stdio[1], c.stdio[2]
	}
	// A group of its own: a signal to ours is not for the container, and the
	// program is killed with the helpers it has started.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	done := r.reaper.hold()
	err := cmd.Run()
	done()
	if err == nil {
		os.Remove(c.log)
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	why := lastError(c.log)
	if why == "" {
		why = err.Error()
	}
	if _, ended := errors.AsType[*exec.ExitError](err); !ended {
		return fmt.Errorf("OCI runtime %s failed: %s: %w", c.verb, why, err)
	}
	return fmt.Errorf("OCI runtime %s failed: %s: %w", c.verb, why, errdefs.ErrInvalidArgument)
}

// logMax is how much of a program's log is read.
const logMax = 64 << 10

// lastError returns what the program said last, of level error.
func lastError(log string) string {
	f, err := os.Open(log)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > logMax {
		f.Seek(st.Size()-logMax, 0)
	}
	b := make([]byte, logMax)
	n, _ := f.Read(b)
	why := ""
	for line := range strings.Lines(string(b[:n])) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Level == "error" {
			why = strings.TrimSpace(entry.Msg)
		}
	}
	return why
}

// Features returns what the OCI runtime says it can do, in JSON, or nil if it
// does not say: older ones do not.
func Features(ctx context.Context, o runner.Options) ([]byte, error) {
	r, err := newRuntime(Config{}, o, newReaper())
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, r.binary, "features").Output()
	if err != nil || !json.Valid(out) {
		return nil, nil
	}
	return out, nil
}
