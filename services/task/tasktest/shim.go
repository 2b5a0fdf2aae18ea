package tasktest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

// A Shim is a shim without a process: what it runs are [Programs]. Connect is
// how it is spoken to.
type Shim struct {
	programs Programs
	pid      uint32

	mu        sync.Mutex
	processes map[string]*process // by exec id; "" is the first process
	paused    bool
	conns     map[*conn]bool
	dead      bool
	ended     chan struct{} // closed with dead
	mute      chan struct{} // not nil: nothing is answered until it is closed
	running   sync.WaitGroup
}

// A process is one of a shim's.
type process struct {
	pid     uint32
	args    []string
	io      task.IO
	status  task.Status
	exit    task.Exit
	streams *streams
	signals chan uint32
	kill    context.CancelFunc
	killed  bool
	ended   chan struct{}
}

var pids atomic.Uint32

func nextPid() uint32 { return 1000 + pids.Add(1) }

// NewShim returns a shim that has no task yet.
func NewShim(programs Programs) *Shim {
	return &Shim{
		programs:  programs,
		pid:       nextPid(),
		processes: make(map[string]*process),
		conns:     make(map[*conn]bool),
		ended:     make(chan struct{}),
	}
}

// Pid returns what the shim says its pid is.
func (s *Shim) Pid() uint32 { return s.pid }

// Connect returns a connection: [errdefs.ErrNotFound] if the shim is dead.
func (s *Shim) Connect() (task.Shim, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return nil, fmt.Errorf("shim: %w", errdefs.ErrNotFound)
	}
	c := &conn{s: s, done: make(chan struct{})}
	s.conns[c] = true
	return c, nil
}

// Mute makes the shim accept calls and not answer them, until Unmute.
func (s *Shim) Mute() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mute = make(chan struct{})
}

// Unmute ends Mute.
func (s *Shim) Unmute() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.mute)
	s.mute = nil
}

// Die ends the shim as SIGKILL does: its connections break, and the processes
// go on without anybody who watches.
func (s *Shim) Die() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dieLocked()
}

func (s *Shim) dieLocked() {
	if s.dead {
		return
	}
	s.dead = true
	close(s.ended)
	for c := range s.conns {
		close(c.done)
	}
	clear(s.conns)
}

// Ended is closed when the shim has ended.
func (s *Shim) Ended() <-chan struct{} { return s.ended }

// Clean is what the delete command of a shim does: it kills what is left of the
// task and says how it ended.
func (s *Shim) Clean() (task.Exit, error) {
	s.mu.Lock()
	s.dieLocked()
	for _, p := range s.processes {
		s.killLocked(p)
	}
	first := s.processes[""]
	s.mu.Unlock()
	s.running.Wait()
	if first == nil {
		return task.Exit{Status: 128 + uint32(syscall.SIGKILL), At: time.Now().UTC()}, nil
	}
	return first.exit, nil
}

// Processes returns how many processes run.
func (s *Shim) Processes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, p := range s.processes {
		if p.status == task.Running || p.status == task.Created {
			n++
		}
	}
	return n
}

// Create implements [task.ShimTask].
func (s *Shim) Create(_ context.Context, r task.ShimCreate) (uint32, error) {
	b, err := os.ReadFile(filepath.Join(r.Bundle, "config.json"))
	if err != nil {
		return 0, err
	}
	return s.create(b, r.IO)
}

func (s *Shim) create(spec []byte, io task.IO) (uint32, error) {
	var c struct {
		Process struct {
			Args []string `json:"args"`
		} `json:"process"`
	}
	if err := json.Unmarshal(spec, &c); err != nil {
		return 0, fmt.Errorf("OCI spec: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.processes[""] != nil {
		return 0, fmt.Errorf("task: %w", errdefs.ErrAlreadyExists)
	}
	p := newProcess(c.Process.Args, io)
	s.processes[""] = p
	return p.pid, nil
}

func newProcess(args []string, io task.IO) *process {
	return &process{
		pid:     nextPid(),
		args:    args,
		io:      io,
		status:  task.Created,
		signals: make(chan uint32, 16),
		ended:   make(chan struct{}),
	}
}

// Delete implements [task.ShimTask].
func (s *Shim) Delete(_ context.Context, id string) (task.Exit, error) { return s.remove(id, "") }

// DeleteProcess implements [task.Processes].
func (s *Shim) DeleteProcess(_ context.Context, id, exec string) (task.Exit, error) {
	if exec == "" {
		return task.Exit{}, fmt.Errorf("exec id: %w", errdefs.ErrInvalidArgument)
	}
	return s.remove(id, exec)
}

func (s *Shim) remove(id, exec string) (task.Exit, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.getLocked(id, exec)
	if err != nil {
		return task.Exit{}, err
	}
	switch p.status {
	case task.Running:
		return task.Exit{}, fmt.Errorf("cannot delete a running process: %w", errdefs.ErrFailedPrecondition)
	case task.Created:
		s.endLocked(exec, p, 0)
	}
	delete(s.processes, exec)
	return p.exit, nil
}

// Get implements [task.ShimTask].
func (s *Shim) Get(_ context.Context, id, exec string) (task.Process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.getLocked(id, exec)
	if err != nil {
		return task.Process{}, err
	}
	status := p.status
	if status == task.Running && exec == "" && s.paused {
		status = task.Paused
	}
	return task.Process{ContainerID: id, ExecID: exec, Pid: p.pid, Status: status, IO: p.io, Exit: p.exit}, nil
}

// Exec implements [task.Processes].
func (s *Shim) Exec(_ context.Context, r task.ExecRequest) error {
	var spec struct {
		Args []string `json:"args"`
	}
	if err := json.Unmarshal(r.Spec.Data, &spec); err != nil {
		return fmt.Errorf("process spec: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	first, err := s.getLocked(r.ContainerID, "")
	if err != nil {
		return err
	}
	if first.status != task.Running {
		return fmt.Errorf("task %s is %s: %w", r.ContainerID, first.status, errdefs.ErrFailedPrecondition)
	}
	if s.processes[r.ExecID] != nil {
		return fmt.Errorf("id %s: %w", r.ExecID, errdefs.ErrAlreadyExists)
	}
	s.processes[r.ExecID] = newProcess(spec.Args, r.IO)
	return nil
}

// Start implements [task.Processes].
func (s *Shim) Start(_ context.Context, id, exec string) (uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.getLocked(id, exec)
	if err != nil {
		return 0, err
	}
	if p.status != task.Created {
		return 0, fmt.Errorf("cannot start a %s process: %w", p.status, errdefs.ErrFailedPrecondition)
	}
	var program Program
	if len(p.args) > 0 {
		program = s.programs[path.Base(p.args[0])]
	}
	if program == nil {
		s.endLocked(exec, p, 127)
		return 0, fmt.Errorf("exec: %q: executable file not found in $PATH: %w", p.args, errdefs.ErrInvalidArgument)
	}
	if p.streams, err = openStreams(p.io.Stdin, p.io.Stdout, p.io.Stderr); err != nil {
		s.endLocked(exec, p, 127)
		return 0, fmt.Errorf("stdio: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.kill = cancel
	p.status = task.Running
	s.running.Go(func() {
		status := program(ctx, Running{Args: p.args, Stdin: p.streams.stdin, Stdout: p.streams.stdout, Stderr: p.streams.stderr, Signals: p.signals})
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.endLocked(exec, p, status)
	})
	return p.pid, nil
}

// endLocked makes p a stopped process. The end of the first ends the others, as
// in a pid namespace.
func (s *Shim) endLocked(exec string, p *process, status uint32) {
	if p.status == task.Stopped {
		return
	}
	if p.killed {
		status = 128 + uint32(syscall.SIGKILL)
	}
	p.status = task.Stopped
	p.exit = task.Exit{Pid: p.pid, Status: status, At: time.Now().UTC()}
	if p.streams != nil {
		p.streams.close()
	}
	close(p.ended)
	if exec == "" {
		for _, other := range s.processes {
			s.killLocked(other)
		}
	}
}

func (s *Shim) killLocked(p *process) {
	switch p.status {
	case task.Running:
		p.killed = true
		p.streams.closeInput()
		p.kill()
	case task.Created:
		p.killed = true
		for exec, q := range s.processes {
			if p == q {
				s.endLocked(exec, p, 0)
			}
		}
	}
}

// Wait implements [task.Processes].
func (s *Shim) Wait(ctx context.Context, id, exec string) (task.Exit, error) {
	s.mu.Lock()
	p, err := s.getLocked(id, exec)
	s.mu.Unlock()
	if err != nil {
		return task.Exit{}, err
	}
	select {
	case <-p.ended:
		return p.exit, nil
	case <-ctx.Done():
		return task.Exit{}, ctx.Err()
	}
}

// Kill implements [task.Processes].
func (s *Shim) Kill(_ context.Context, id, exec string, signal uint32, all bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.getLocked(id, exec)
	if err != nil {
		return err
	}
	if p.status == task.Stopped {
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	}
	targets := []*process{p}
	if all {
		targets = slices.Collect(maps.Values(s.processes))
	}
	for _, p := range targets {
		if signal == uint32(syscall.SIGKILL) {
			s.killLocked(p)
			continue
		}
		select {
		case p.signals <- signal:
		default: // as the kernel, which keeps one of each
		}
	}
	return nil
}

// ResizePty implements [task.Processes].
func (s *Shim) ResizePty(_ context.Context, id, exec string, _, _ uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.getLocked(id, exec)
	return err
}

// CloseIO implements [task.Processes].
func (s *Shim) CloseIO(_ context.Context, id, exec string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.getLocked(id, exec)
	if err != nil {
		return err
	}
	if p.streams != nil {
		p.streams.closeInput()
	}
	return nil
}

// Pause implements [task.ShimTask].
func (s *Shim) Pause(_ context.Context, id string) error { return s.setPaused(id, true) }

// Resume implements [task.ShimTask].
func (s *Shim) Resume(_ context.Context, id string) error { return s.setPaused(id, false) }

func (s *Shim) setPaused(id string, paused bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.getLocked(id, "")
	if err != nil {
		return err
	}
	if p.status != task.Running {
		return fmt.Errorf("task %s is %s: %w", id, p.status, errdefs.ErrFailedPrecondition)
	}
	s.paused = paused
	return nil
}

// Pids implements [task.ShimTask].
func (s *Shim) Pids(_ context.Context, id string) ([]task.ProcessInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.getLocked(id, ""); err != nil {
		return nil, err
	}
	var all []task.ProcessInfo
	for _, exec := range slices.Sorted(maps.Keys(s.processes)) {
		if p := s.processes[exec]; p.status == task.Running || p.status == task.Created && exec == "" {
			all = append(all, task.ProcessInfo{Pid: p.pid})
		}
	}
	return all, nil
}

// Update implements [task.ShimTask].
func (s *Shim) Update(_ context.Context, id string, _ typed.Value, _ map[string]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.getLocked(id, "")
	return err
}

// Checkpoint implements [task.ShimTask].
func (s *Shim) Checkpoint(_ context.Context, id, _ string, _ *typed.Value) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.getLocked(id, ""); err != nil {
		return err
	}
	return fmt.Errorf("checkpoint: %w", errdefs.ErrNotImplemented)
}

// Stats implements [task.ShimTask].
func (s *Shim) Stats(_ context.Context, id string) (*typed.Value, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.getLocked(id, ""); err != nil {
		return nil, err
	}
	return &typed.Value{URL: "tasktest.Stats", Data: bytes.Clone([]byte(id))}, nil
}

// Info implements [task.Shim].
func (s *Shim) Info(_ context.Context, id string) (task.ShimInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.getLocked(id, "")
	if err != nil {
		return task.ShimInfo{}, err
	}
	return task.ShimInfo{ShimPid: s.pid, TaskPid: p.pid, Version: "3"}, nil
}

// Shutdown implements [task.Shim].
func (s *Shim) Shutdown(context.Context, string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.processes) == 0 {
		s.dieLocked()
	}
	return nil
}

func (s *Shim) getLocked(id, exec string) (*process, error) {
	p := s.processes[exec]
	if p == nil {
		return nil, fmt.Errorf("process %q of task %s: %w", exec, id, errdefs.ErrNotFound)
	}
	return p, nil
}
