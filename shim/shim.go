package shim

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/runner"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/shim/stream"
)

const (
	execsMax  = 1000             // of one container, until they are deleted
	keptMax   = 16               // answers of Delete
	signalMax = 64               // the kernel's last
	idleTime  = 10 * time.Minute // a shim without a task ends by itself
)

// A Shim is the process beside a container, without its wire.
type Shim struct {
	cfg    Config
	log    *slog.Logger
	events runner.Publisher
	queue  *queue
	reaper *reaper
	bufs   stream.Buffers
	wg     sync.WaitGroup // of the processes' watchers, and of the kernel's last work on mounts
	done   chan struct{}  // closed when the shim has to end

	mu         sync.Mutex // guards what follows
	containers map[string]*container
	kept       map[string]task.Exit // of containers that were deleted
	live       int                  // processes whose end is not told
	leaving    bool                 // ends with its last process
	ended      bool                 // done is closed
	idle       *time.Timer
}

var _ runner.Runner = (*Shim)(nil)

// Needs are what a shim uses of others.
type Needs struct {
	Events runner.Publisher // nil: nobody is told
	Log    *slog.Logger
}

// Open makes a shim without a task.
func Open(cfg Config, needs Needs) (*Shim, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("shim: %w", err)
	}
	s := &Shim{
		cfg:        cfg,
		log:        needs.Log,
		events:     needs.Events,
		queue:      newQueue(cfg.Bundle, needs.Log, needs.Events != nil),
		reaper:     newReaper(),
		done:       make(chan struct{}),
		containers: map[string]*container{},
		kept:       map[string]task.Exit{},
	}
	s.idle = time.AfterFunc(idleTime, func() { s.Shutdown(context.Background()) })
	return s, nil
}

// Close frees what the shim has in this process, after the last call. Containers
// run on.
func (s *Shim) Close() {
	s.mu.Lock()
	s.idle.Stop()
	s.endLocked()
	all := s.containers
	s.containers = map[string]*container{}
	s.mu.Unlock()
	for _, c := range all {
		if c.init == nil {
			continue
		}
		for _, p := range append(c.list(), c.init) {
			p.mu.Lock()
			fd := p.fd
			p.mu.Unlock()
			if fd != nil {
				fd.close()
			}
			if io := p.streams(); io != nil {
				io.Abort()
			}
		}
	}
	s.wg.Wait()
	s.queue.close()
}

// Publish tells what happened, in order, until ctx ends.
func (s *Shim) Publish(ctx context.Context) error {
	if s.events == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return s.queue.publish(ctx, s.events)
}

// Reap waits for orphans whenever a child has ended, until ctx ends. The
// channel carries SIGCHLD and has room for one.
func (s *Shim) Reap(ctx context.Context, ended <-chan os.Signal) error {
	return s.reaper.run(ctx, ended)
}

// Done is closed when the shim has to end: after Shutdown, or after Leave when
// no process is left.
func (s *Shim) Done() <-chan struct{} { return s.done }

// Told is closed when everybody has been told everything.
func (s *Shim) Told() <-chan struct{} { return s.queue.drained() }

// Leave ends the shim as soon as no process needs it.
func (s *Shim) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving = true
	if s.live == 0 {
		s.endLocked()
	}
}

func (s *Shim) processOver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live--
	if s.leaving && s.live == 0 {
		s.endLocked()
	}
}

func (s *Shim) endLocked() {
	if !s.ended {
		s.ended = true
		close(s.done)
	}
}

// Shutdown implements runner.Runner.
func (s *Shim) Shutdown(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.containers) == 0 {
		s.endLocked()
	}
	return nil
}

// find returns a process of a container that is created.
func (s *Shim) find(id, exec string) (*process, error) {
	s.mu.Lock()
	c := s.containers[id]
	if c == nil || c.init == nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("task %s: %w", id, errdefs.ErrNotFound)
	}
	s.mu.Unlock()
	if exec == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.execs[exec]
	if p == nil {
		return nil, fmt.Errorf("exec %s in task %s: %w", exec, id, errdefs.ErrNotFound)
	}
	return p, nil
}

// inSlot finds a process and runs do in its slot. What has begun goes on if
// the caller goes away, for at most callTime.
func (s *Shim) inSlot(ctx context.Context, id, exec string, do func(context.Context, *process) error) error {
	p, err := s.find(id, exec)
	if err != nil {
		return err
	}
	if err := p.take(ctx); err != nil {
		return err
	}
	defer p.release()
	if p.isGone() {
		return p.notFound()
	}
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
	defer cancel()
	return do(own, p)
}
