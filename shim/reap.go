package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/cgroup"
)

// A reaper takes the orphans of containers: processes whose parents have
// ended come to us, because we are a subreaper, and stay as zombies until they
// are waited for. It never touches a process that somebody waits for.
type reaper struct {
	wake chan struct{} // one token

	mu    sync.Mutex   // guards what follows
	calls int          // of programs that run and may leave us a process
	known map[int]bool // processes that a pidfd waits for
}

func newReaper() *reaper {
	return &reaper{wake: make(chan struct{}, 1), known: map[int]bool{}}
}

// hold keeps the reaper off until the returned function is called. What the
// program leaves behind for us has to be made known before that.
func (r *reaper) hold() func() {
	r.mu.Lock()
	r.calls++
	r.mu.Unlock()
	return func() {
		r.mu.Lock()
		r.calls--
		r.mu.Unlock()
		r.poke()
	}
}

// know keeps the reaper off a process until forget.
func (r *reaper) know(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[pid] = true
}

func (r *reaper) forget(pid int) {
	r.mu.Lock()
	delete(r.known, pid)
	r.mu.Unlock()
	r.poke()
}

func (r *reaper) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run reaps whenever a child has ended, until ctx ends.
func (r *reaper) run(ctx context.Context, ended <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
		case <-r.wake:
		}
		for r.reapOne() {
		}
	}
}

// reapOne takes one orphan. It reports whether there may be more.
func (r *reaper) reapOne() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.calls > 0 {
		return false // the call's end pokes
	}
	pid, ok := peekZombie()
	if !ok || r.known[pid] {
		return false // whoever waits for it pokes
	}
	_, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
	return err == nil || errors.Is(err, unix.ECHILD)
}

// peekZombie returns a child that has ended and leaves it as it is.
func peekZombie() (int, bool) {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if err != nil {
		return 0, false
	}
	// The pid is the first field of what the package leaves unnamed: at 16
	// where a pointer has eight bytes.
	pid := *(*int32)(unsafe.Add(unsafe.Pointer(&info), 16))
	return int(pid), pid > 0
}

// BecomeSubreaper makes this process the parent of every descendant whose own
// parent ends. Containers are such.
func BecomeSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	return nil
}

// JoinCgroup moves this process to a cgroup, which exists.
func JoinCgroup(path string) error { return cgroup.Join(path) }
