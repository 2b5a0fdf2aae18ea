package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/runner"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/shim/cgroup"
	"github.com/gantryd/gantry/shim/stream"
)

const (
	heirTime = 2 * time.Second  // for the execs of a container whose first process has ended
	killTime = 10 * time.Second // for a killed process to end
)

// A container is a task: a first process and those that Exec added.
type container struct {
	shim    *Shim
	id      string
	bundle  string
	rootfs  string // mounted by us; empty if it is not
	runtime *ociRuntime
	cgroup  cgroup.Cgroup
	hooks   bool // the OCI runtime has some to run at the start
	shared  bool // processes outlive the first one: its PID namespace is not its own

	init *process // nil until the container is created; Shim.mu guards it

	mu       sync.Mutex // guards what follows
	execs    map[string]*process
	oomKills uint64 // of which we have told
}

// A process is one process of a container.
type process struct {
	c    *container
	exec string // empty for the first
	io   task.IO
	dir  string // of its records

	// slot has room for one: who is in it runs the OCI runtime for this
	// process. It is waited for with a context, which a mutex cannot.
	slot chan struct{}

	dead chan struct{} // closed when the process has ended
	over chan struct{} // closed when the end is recorded and told
	gone chan struct{} // closed when the process is deleted

	mu       sync.Mutex // guards what follows
	status   task.Status
	fd       *pidfd // nil until there is a process
	pid      uint32
	exit     task.Exit
	starting chan struct{} // closed when the Start that runs has told; nil if none runs
	stdio    *stream.Set   // nil until there are streams

	// What a client asked of streams that are not there yet.
	width, height uint32
	stdinEnded    bool
}

func newProcess(c *container, exec, dir string, io task.IO) *process {
	return &process{
		c: c, exec: exec, io: io, dir: dir,
		slot:   make(chan struct{}, 1),
		dead:   make(chan struct{}),
		over:   make(chan struct{}),
		gone:   make(chan struct{}),
		status: task.Created,
	}
}

// take enters the slot. The process may have been deleted meanwhile.
func (p *process) take(ctx context.Context) error {
	select {
	case p.slot <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *process) release() { <-p.slot }

func (p *process) isGone() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

func (p *process) String() string {
	if p.exec == "" {
		return "task " + p.c.id
	}
	return "exec " + p.exec + " in task " + p.c.id
}

func (p *process) notFound() error { return fmt.Errorf("%v: %w", p, errdefs.ErrNotFound) }

func (p *process) statusNow() task.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

func (p *process) exitNow() task.Exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit
}

// streams returns the process's streams, or nil.
func (p *process) streams() *stream.Set {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stdio
}

// openStreams makes the process's streams. In the slot.
func (p *process) openStreams(o runner.Options, socket string) (*stream.Set, error) {
	s, err := stream.Open(stream.Config{
		IO: p.io, UID: o.IOUID, GID: o.IOGID,
		Bundle: p.c.bundle, Socket: socket,
		Buffers: &p.c.shim.bufs, Log: p.c.shim.log,
	})
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stdio = s
	if p.width != 0 || p.height != 0 {
		s.Resize(p.width, p.height) // kept until there is a terminal
	}
	if p.stdinEnded {
		s.CloseStdin()
	}
	s.Begin()
	return s, nil
}

// event is an event about the process, for whoever fills in the rest.
func (p *process) event(topic runner.Topic) runner.Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	return runner.Event{Topic: topic, ContainerID: p.c.id, ExecID: p.exec, Pid: p.pid}
}

// adopt takes a child that the OCI runtime left us. The reaper is held.
func (p *process) adopt(pid int) error {
	fd, err := openPidfd(pid)
	if err != nil {
		return err
	}
	p.c.shim.reaper.know(pid)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fd, p.pid = fd, uint32(pid)
	return nil
}

// begin says that a Start runs: the end of the process is told after it.
func (p *process) begin() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status != task.Created || p.starting != nil {
		return fmt.Errorf("%v is %s and cannot be started: %w", p, p.status, errdefs.ErrFailedPrecondition)
	}
	p.starting = make(chan struct{})
	return nil
}

// begun says that the Start has told.
func (p *process) begun(s task.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status == task.Created {
		p.status = s
	}
	close(p.starting)
	p.starting = nil
}

// lives reports whether the process has started and its end is not told.
func (p *process) lives() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.starting != nil || p.status == task.Running
}

func (p *process) awaitStart() {
	p.mu.Lock()
	starting := p.starting
	p.mu.Unlock()
	if starting != nil {
		<-starting
	}
}

// watch waits for the end of the process, records it, and tells it. The order
// is the promise: what was told survives us.
func (p *process) watch() {
	status, err := p.fd.wait()
	if err != nil {
		return // the shim is being closed
	}
	at := time.Now().UTC()
	close(p.dead)
	c := p.c
	c.shim.reaper.forget(p.fd.pid)
	p.streams().ProcessEnded()
	p.awaitStart()
	if p.exec == "" {
		c.endOthers()
	}
	oom := c.ranOutOfMemory()
	exit := task.Exit{Pid: p.pid, Status: status, At: at}
	record := exitState{ContainerID: c.id, ExecID: p.exec, Pid: p.pid, Status: status, At: at, OutOfMemory: oom}
	if err := writeRecord(p.dir, exitRecord, record, true); err != nil {
		c.shim.log.Error("an exit is told that is not recorded", "task", c.id, "exec", p.exec, "err", err)
	}
	if oom {
		c.shim.queue.add(runner.Event{Topic: runner.OutOfMemory, ContainerID: c.id})
	}
	e := p.event(runner.Exited)
	e.Exit = exit
	c.shim.queue.add(e)
	p.finish(exit)
	c.shim.processOver()
}

// finish makes the process stopped and lets its waiters go.
func (p *process) finish(exit task.Exit) {
	p.mu.Lock()
	p.status, p.exit = task.Stopped, exit
	p.mu.Unlock()
	close(p.over)
}

// free closes what the process had. In the slot.
func (p *process) free() {
	if s := p.streams(); s != nil {
		s.Close()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd != nil {
		p.fd.close()
	}
}

// discard kills a process that was adopted and never watched.
func (p *process) discard() {
	if p.fd == nil {
		return
	}
	p.fd.signal(uint32(unix.SIGKILL))
	p.fd.f.SetReadDeadline(time.Now().Add(killTime))
	p.fd.wait()
	p.c.shim.reaper.forget(p.fd.pid)
	p.fd.close()
}

// kill sends a signal: [errdefs.ErrNotFound] if the process has ended.
func (p *process) kill(sig uint32) error {
	p.mu.Lock()
	fd, status := p.fd, p.status
	p.mu.Unlock()
	if status == task.Stopped {
		return fmt.Errorf("%v: process already finished: %w", p, errdefs.ErrNotFound)
	}
	if fd == nil {
		return fmt.Errorf("%v has not started: %w", p, errdefs.ErrFailedPrecondition)
	}
	err := fd.signal(sig)
	if errors.Is(err, os.ErrProcessDone) || errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("%v: process already finished: %w", p, errdefs.ErrNotFound)
	}
	return err
}

// end kills the process and waits until that is told.
func (p *process) end() error {
	if err := p.kill(uint32(unix.SIGKILL)); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	select {
	case <-p.over:
		return nil
	case <-time.After(killTime):
		return fmt.Errorf("%v does not die: %w", p, context.DeadlineExceeded)
	}
}

// endOthers waits until the execs' ends are told, which comes before the end
// of the first process is. In a PID namespace of its own the kernel has killed
// them by now.
func (c *container) endOthers() {
	if c.shared {
		if err := c.cgroup.Signal(uint32(unix.SIGKILL)); err != nil {
			c.shim.log.Warn("processes may outlive their container", "task", c.id, "err", err)
		}
	}
	late := time.NewTimer(heirTime)
	defer late.Stop()
	for _, e := range c.list() {
		if !e.lives() {
			continue
		}
		select {
		case <-e.over:
		case <-late.C:
			return
		}
	}
}

func (c *container) list() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	var l []*process
	for _, e := range c.execs {
		l = append(l, e)
	}
	return l
}

// ranOutOfMemory reports whether the kernel has killed a process of the
// container for memory since it was asked last.
func (c *container) ranOutOfMemory() bool {
	n := c.cgroup.OOMKills()
	c.mu.Lock()
	defer c.mu.Unlock()
	more := n > c.oomKills
	c.oomKills = max(n, c.oomKills)
	return more
}

// sharesPids reports whether a process is not the first of its PID namespace,
// so that the namespace does not end with it.
func sharesPids(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			f := strings.Fields(rest)
			return len(f) > 0 && f[len(f)-1] != "1"
		}
	}
	return false
}
