package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/gantryd/gantry/services/suite"
)

// Times of a daemon that is watched.
const (
	steady      = 10 * time.Second       // one that ran this long is started again at once
	pauseFirst  = 50 * time.Millisecond  // between the second start and the third
	pauseMost   = 800 * time.Millisecond // the suite works again within 2 s of a fault
	stopTime    = 15 * time.Second       // then it is killed; daemons drain for 10 s
	failuresMax = 5                      // of one that has not served yet
)

// stopOrder is the order in which daemons stop: first who lets calls in, last
// who hears what happened.
var stopOrder = []string{suite.Gatewayd, suite.Taskd, suite.Imaged, suite.Snapshotd, suite.Contentd, suite.Eventbus}

// A supervisor runs the daemons and starts one again that dies.
type supervisor struct {
	bin, config string
	plugins     []string // that run beside the daemons
	logs        *lines
	patience    time.Duration // with a daemon that is to stop
}

// run keeps the daemons running until ctx ends or one of them cannot be
// started, and then stops them in order. It calls ready meanwhile, once.
func (s *supervisor) run(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A plugin stops first: it needs all the others.
	order := slices.Concat(s.plugins, stopOrder)
	failed := make(chan error, len(order)+1)
	served := make(chan struct{})
	kept := make(map[string]*watched)
	for _, name := range order {
		w := &watched{s: s, name: name, served: served, done: make(chan struct{})}
		w.ctx, w.stop = context.WithCancel(context.WithoutCancel(ctx))
		kept[name] = w
		go func() {
			defer close(w.done)
			if err := w.keep(); err != nil {
				failed <- err
			}
		}()
	}
	readyDone := make(chan struct{})
	go func() {
		defer close(readyDone)
		if err := ready(ctx); err != nil {
			failed <- err
			return
		}
		close(served)
	}()

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	<-readyDone
	for _, name := range order {
		kept[name].stop()
		<-kept[name].done
	}
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// A watched is one daemon that a supervisor runs.
type watched struct {
	s      *supervisor
	name   string
	served <-chan struct{} // closed when the whole suite has served once

	ctx  context.Context
	stop context.CancelFunc // ends keep
	done chan struct{}      // closed when keep has returned
}

// keep runs the daemon until it is told to stop.
func (w *watched) keep() error {
	// The kernel tells the daemon of the death of the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, out, err := os.Pipe()
	if err != nil {
		return err
	}
	copied := make(chan string, 1)
	go func() { copied <- w.s.logs.copy(w.name, r) }()
	err = w.restart(out)
	out.Close()
	select {
	case last := <-copied:
		if err != nil && last != "" {
			err = fmt.Errorf("%w: %s", err, last)
		}
	case <-time.After(time.Second):
		// A shim holds the other end. What it says from now on has no reader.
		r.SetReadDeadline(time.Now())
		<-copied
	}
	r.Close()
	return err
}

// restart runs the daemon again and again. It gives up on one that has never
// served: somebody has to look at it.
func (w *watched) restart(out *os.File) error {
	failures := 0
	for {
		began := time.Now()
		err := w.once(out)
		if w.ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > steady {
			failures = 0
		}
		failures++
		select {
		case <-w.served:
		default:
			if failures >= failuresMax {
				return fmt.Errorf("up: %s does not stay up (%w)", w.name, err)
			}
		}
		w.s.logs.say("up", fmt.Sprintf("%s ended (%v); starting it again", w.name, err))
		if failures > 1 {
			select {
			case <-w.ctx.Done():
				return nil
			case <-time.After(min(pauseFirst<<min(failures-2, 10), pauseMost)):
			}
		}
	}
}

// once runs the daemon until it ends, or ends it when it is told to stop.
func (w *watched) once(out *os.File) error {
	c := exec.Command(filepath.Join(w.s.bin, w.name), "-config", filepath.Join(w.s.config, w.name+".toml"))
	c.Stdout, c.Stderr = out, out
	c.Dir = "/"
	c.Env = append(os.Environ(), "PATH="+w.s.bin+":"+os.Getenv("PATH"), "NOTIFY_SOCKET=")
	// A group of its own, so that a terminal's Ctrl-C is for up alone; and if
	// up is killed the daemons do not stay without it.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := c.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	select {
	case err := <-ended:
		return how(err)
	case <-w.ctx.Done():
	}
	_ = c.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-ended:
		return how(err)
	case <-time.After(w.s.patience):
		w.s.logs.say("up", w.name+" does not stop; killing it")
		_ = c.Process.Kill()
		return <-ended
	}
}

// how says how a daemon ended also if it ended well, which it should not.
func how(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// lines puts the lines of several processes into one stream, with the name of
// each before its lines.
type lines struct {
	mu sync.Mutex
	w  io.Writer // guarded by mu
}

// lineMax is how long a line is at most, in bytes; a longer one is cut into
// several.
const lineMax = 64 << 10

func (l *lines) say(name, line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.w, "%-9s | %s\n", name, line)
}

// copy copies lines until r ends and returns the last.
func (l *lines) copy(name string, r io.Reader) (last string) {
	b := bufio.NewReaderSize(r, lineMax)
	for {
		line, _, err := b.ReadLine()
		if err != nil {
			return last
		}
		if len(line) > 0 {
			last = string(line)
			l.say(name, last)
		}
	}
}
