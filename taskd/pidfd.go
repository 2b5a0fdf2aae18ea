package taskd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func (p *processes) watch(w process) (<-chan struct{}, error) {
	gone := fmt.Errorf("process %d: %w", w.Pid, errdefs.ErrNotFound)
	fd, err := unix.PidfdOpen(w.Pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, gone
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", w.Pid, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd") // waited for without a thread
	if now, err := p.identify(w.Pid); err != nil || now != w {
		f.Close()
		return nil, gone
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		f.Close()
		return nil, fmt.Errorf("taskd is closing: %w", errdefs.ErrUnavailable)
	}
	p.watches[f] = true
	ended := make(chan struct{})
	p.wg.Go(func() {
		if awaitEnd(f) {
			close(ended)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.watches, f)
		f.Close()
	})
	return ended, nil
}

// awaitEnd returns true when the process has ended, and takes its status if it
// was a child; false when the file is closed before.
func awaitEnd(f *os.File) bool {
	c, err := f.SyscallConn()
	if err != nil {
		return false
	}
	ended := false
	err = c.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		if err != nil || n == 0 {
			return false
		}
		ended = true
		// Fails for a process that is not our child: somebody else's duty.
		unix.Waitid(unix.P_PIDFD, int(fd), nil, unix.WEXITED|unix.WNOHANG, nil)
		return true
	})
	return err == nil && ended
}

func (p *processes) signal(k process, s syscall.Signal) error {
	fd, err := unix.PidfdOpen(k.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", k.Pid, err)
	}
	defer unix.Close(fd)
	if now, err := p.identify(k.Pid); err != nil || now != k {
		return nil // it has ended, and its pid is another's
	}
	if err := unix.PidfdSendSignal(fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process %d: %w", k.Pid, err)
	}
	return nil
}

// birthField is the place of a process's start time in its stat file, counted
// from the state, which follows the name in parentheses.
const birthField = 19

func (p *processes) identify(pid int) (process, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return process{}, fmt.Errorf("process %d: %w", pid, errdefs.ErrNotFound)
	}
	if err != nil {
		return process{}, err
	}
	_, rest, _ := strings.Cut(string(b[bytes.LastIndexByte(b, ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) <= birthField {
		return process{}, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	birth, err := strconv.ParseUint(fields[birthField], 10, 64)
	if err != nil {
		return process{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return process{Pid: pid, Birth: birth}, nil
}

func (p *processes) strays(dir string) ([]process, error) {
	all, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		return nil, err
	}
	var found []process
	for _, link := range all {
		to, err := os.Readlink(link)
		if err != nil || to != dir {
			continue // it has ended, or is elsewhere
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
		if err != nil {
			return nil, err
		}
		if s, err := p.identify(pid); err == nil && pid != os.Getpid() {
			found = append(found, s)
		}
	}
	return found, nil
}
