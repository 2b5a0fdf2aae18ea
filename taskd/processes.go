package taskd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/services/task"
)

// processes is the runtime of a node: shims are child processes.
type processes struct {
	finder
	protocol  task.ShimProtocol
	address   string
	sockets   string
	publisher string
	environ   []string

	mu      sync.Mutex
	legacy  map[string]bool   // executables that read the older form of parameters
	watches map[*os.File]bool // pidfds that are waited for
	closed  bool
	wg      sync.WaitGroup
}

func newProcesses(cfg Config, needs Needs) *processes {
	p := &processes{
		finder:    finder{runtimes: cfg.Runtimes, beside: filepath.Dir(needs.Executable)},
		protocol:  needs.Shims,
		address:   cfg.Address,
		sockets:   cfg.ShimSockets,
		publisher: needs.Executable,
		legacy:    make(map[string]bool),
		watches:   make(map[*os.File]bool),
	}
	for _, e := range needs.Environ {
		name, value, _ := strings.Cut(e, "=")
		switch name {
		case "PATH":
			p.path = filepath.SplitList(value)
		case "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID":
			continue // systemd's word to us; a runtime would take it for its own
		}
		p.environ = append(p.environ, e)
	}
	return p
}

func (p *processes) connect(ctx context.Context, namespace string, a task.ShimAddress) (task.Shim, error) {
	return p.protocol.Connect(ctx, namespace, a)
}

func (p *processes) params(l launch, legacy bool) ([]byte, error) {
	return p.protocol.Params(task.ShimStart{
		Namespace: l.namespace,
		ID:        l.id,
		Address:   p.address,
		Events:    suite.ShimSocket(p.address),
		Publisher: p.publisher,
		Sockets:   p.sockets,
		Options:   l.options,
	}, legacy)
}

func (p *processes) argv(l launch, more ...string) []string {
	return append([]string{
		l.binary,
		"-namespace", l.namespace,
		"-address", p.address,
		"-publish-binary", p.publisher,
		"-id", l.id,
	}, more...)
}

func (p *processes) env(l launch) []string {
	return append(slices.Clip(p.environ),
		"GOMAXPROCS=2",
		"MAX_SHIM_VERSION=2",
		"TTRPC_ADDRESS="+suite.ShimSocket(p.address),
		"GRPC_ADDRESS="+p.address,
		"NAMESPACE="+l.namespace,
	)
}

func (p *processes) start(ctx context.Context, l launch, born func(process) error) (task.ShimAddress, error) {
	var a task.ShimAddress
	var err error
	if l.own() {
		a, err = p.startOwn(ctx, l, born)
	} else {
		a, err = p.startOther(ctx, l)
	}
	if err != nil {
		return a, fmt.Errorf("failed to start shim %s: %w", filepath.Base(l.binary), err)
	}
	return a, nil
}

// startOwn starts the suite's own shim. It becomes what it is to be at once,
// and says when it can be reached.
func (p *processes) startOwn(ctx context.Context, l launch, born func(process) error) (task.ShimAddress, error) {
	params, err := p.params(l, false)
	if err != nil {
		return task.ShimAddress{}, err
	}
	stdin, err := memory("params", params)
	if err != nil {
		return task.ShimAddress{}, err
	}
	defer stdin.Close()
	stderr, err := memory("stderr", nil)
	if err != nil {
		return task.ShimAddress{}, err
	}
	defer stderr.Close()
	stdout, out, err := os.Pipe()
	if err != nil {
		return task.ShimAddress{}, err
	}
	defer stdout.Close()
	child, err := os.StartProcess(l.binary, p.argv(l, "serve"), &os.ProcAttr{
		Dir:   l.dir,
		Env:   p.env(l),
		Files: []*os.File{stdin, out, stderr},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	out.Close()
	if err != nil {
		return task.ShimAddress{}, err
	}
	pid := child.Pid
	// It is waited for as a process that ends some day, by its pidfd.
	shim, err := p.identify(pid)
	if err == nil {
		_, err = p.watch(shim)
	}
	if err != nil {
		child.Kill()
		child.Wait()
		return task.ShimAddress{}, err
	}
	child.Release()
	if err := born(shim); err != nil {
		return task.ShimAddress{}, err
	}
	line, err := readLine(ctx, stdout)
	if err != nil {
		return task.ShimAddress{}, said(stderr, err)
	}
	return p.protocol.Started(line)
}

// answerMax is how much a starting shim may say.
const answerMax = 64 << 10

// readLine reads to the end of the first line, or until ctx ends.
func readLine(ctx context.Context, f *os.File) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	var line []byte
	b := make([]byte, 4096)
	for len(line) < answerMax {
		n, err := f.Read(b)
		line = append(line, b[:n]...)
		if bytes.IndexByte(line, '\n') >= 0 {
			return line, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			return nil, fmt.Errorf("it ended without saying where it listens: %w", errdefs.ErrInternal)
		}
	}
	return nil, fmt.Errorf("more than %d bytes in its first line: %w", answerMax, errdefs.ErrInternal)
}

// startOther starts a shim that puts itself into the background. A shim from
// before there were parameters fails on them; it is asked again in the older
// form, and from then on.
func (p *processes) startOther(ctx context.Context, l launch) (task.ShimAddress, error) {
	p.mu.Lock()
	legacy := p.legacy[l.binary]
	p.mu.Unlock()
	a, err := p.startOnce(ctx, l, legacy)
	if err == nil || legacy || ctx.Err() != nil {
		return a, err
	}
	a, again := p.startOnce(ctx, l, true)
	if again != nil {
		return a, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.legacy[l.binary] = true
	return a, nil
}

func (p *processes) startOnce(ctx context.Context, l launch, legacy bool) (task.ShimAddress, error) {
	params, err := p.params(l, legacy)
	if err != nil {
		return task.ShimAddress{}, err
	}
	output, err := memory("output", nil)
	if err != nil {
		return task.ShimAddress{}, err
	}
	defer output.Close()
	// Whatever it says anywhere is its answer: shims rely on it.
	if err := p.run(ctx, l, p.argv(l, "start"), params, output, output); err != nil {
		return task.ShimAddress{}, said(output, err)
	}
	b, err := contents(output)
	if err != nil {
		return task.ShimAddress{}, err
	}
	return p.protocol.Started(b)
}

func (p *processes) clean(ctx context.Context, l launch) (task.Exit, error) {
	stdout, err := memory("stdout", nil)
	if err != nil {
		return task.Exit{}, err
	}
	defer stdout.Close()
	stderr, err := memory("stderr", nil)
	if err != nil {
		return task.Exit{}, err
	}
	defer stderr.Close()
	if err := p.run(ctx, l, p.argv(l, "-bundle", l.dir, "delete"), nil, stdout, stderr); err != nil {
		return task.Exit{}, fmt.Errorf("%s delete: %w", filepath.Base(l.binary), said(stderr, err))
	}
	b, err := contents(stdout)
	if err != nil {
		return task.Exit{}, err
	}
	return p.protocol.Deleted(b)
}

// run runs a command of a shim to its end, or to that of ctx. The streams are
// files in memory: a pipe would stay open in the shim that the command leaves
// behind.
func (p *processes) run(ctx context.Context, l launch, argv []string, stdin []byte, stdout, stderr *os.File) error {
	in, err := memory("stdin", stdin)
	if err != nil {
		return err
	}
	defer in.Close()
	child, err := os.StartProcess(l.binary, argv, &os.ProcAttr{
		Dir:   l.dir,
		Env:   p.env(l),
		Files: []*os.File{in, stdout, stderr},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { child.Kill() })
	defer stop()
	state, err := child.Wait()
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case !state.Success():
		return fmt.Errorf("%v: %w", state, errdefs.ErrInternal)
	}
	return nil
}

// memory returns a file in memory with b in it.
func memory(name string, b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if len(b) > 0 {
		if _, err := f.Write(b); err != nil {
			f.Close()
			return nil, fmt.Errorf("memfd: %w", err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			f.Close()
			return nil, fmt.Errorf("memfd: %w", err)
		}
	}
	return f, nil
}

func contents(f *os.File) ([]byte, error) {
	return io.ReadAll(io.NewSectionReader(f, 0, answerMax))
}

// said adds the last line of what a process printed to the error it ended with.
func said(f *os.File, err error) error {
	b, readErr := contents(f)
	if readErr != nil {
		return err
	}
	words := strings.TrimSpace(string(b))
	if i := strings.LastIndexByte(words, '\n'); i >= 0 {
		words = words[i+1:]
	}
	if words == "" {
		return err
	}
	return fmt.Errorf("%q: %w", words, err)
}

func (p *processes) close() {
	p.mu.Lock()
	p.closed = true
	for f := range p.watches {
		f.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}
