package shim

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// unknownStatus is the exit status of a process whose end nobody saw.
const unknownStatus = 255

// A pidfd is a process that cannot be mistaken for another one: its number
// stays taken until we reap it, because we are its parent.
type pidfd struct {
	pid int
	f   *os.File
}

// openPidfd opens a child of ours that has not been reaped.
func openPidfd(pid int) (*pidfd, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	// Non-blocking, so that waiting for it takes no thread.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &pidfd{pid: pid, f: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// wait returns the exit status when the process has ended, and reaps it. It is
// [os.ErrClosed] if the pidfd is closed before.
func (p *pidfd) wait() (uint32, error) {
	c, err := p.f.SyscallConn()
	if err != nil {
		return unknownStatus, err
	}
	var ws unix.WaitStatus
	var waitErr error
	err = c.Read(func(uintptr) bool {
		var pid int
		for {
			pid, waitErr = unix.Wait4(p.pid, &ws, unix.WNOHANG, nil)
			if !errors.Is(waitErr, unix.EINTR) {
				break
			}
		}
		return waitErr != nil || pid == p.pid
	})
	if err != nil {
		return unknownStatus, err
	}
	if waitErr != nil {
		// Not our child: it was never ours to reap, and has gone.
		return unknownStatus, nil
	}
	if ws.Signaled() {
		return 128 + uint32(ws.Signal()), nil
	}
	return uint32(ws.ExitStatus()), nil
}

// signal sends a signal: [os.ErrProcessDone] if the process has ended.
func (p *pidfd) signal(sig uint32) error {
	c, err := p.f.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	if err := c.Control(func(fd uintptr) {
		sendErr = unix.PidfdSendSignal(int(fd), syscall.Signal(sig), nil, 0)
	}); err != nil {
		return err
	}
	if errors.Is(sendErr, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return sendErr
}

func (p *pidfd) close() { p.f.Close() }

// A birth tells a process from a later one of the same number.
type birth struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks since the boot
	Boot  string `json:"boot"`  // the kernel's id of the boot
}

// birthOf reads the birth of a process that exists.
func birthOf(pid int) (birth, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return birth{}, err
	}
	// The name, in parentheses, holds anything; what follows it does not.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return birth{}, fmt.Errorf("process %d: cannot read its stat", pid)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return birth{}, fmt.Errorf("process %d: start: %w", pid, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return birth{}, err
	}
	return birth{Pid: pid, Start: start, Boot: strings.TrimSpace(string(boot))}, nil
}
