package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/task"
)

// Cleanup removes what a task has left on the node, whose shim is no more, and
// returns how its first process ended. It may be called again, and after a
// Delete, when there is nothing left to do. The bundle itself stays.
func Cleanup(ctx context.Context, cfg Config, log *slog.Logger) (task.Exit, error) {
	if err := cfg.Check(); err != nil {
		return task.Exit{}, fmt.Errorf("shim: %w", err)
	}
	state := runtimeState{ID: cfg.ID}
	if err := readRecord(cfg.Bundle, runtimeRecord, &state); err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Warn("it is not known how the container was made", "task", cfg.ID, "err", err)
	}
	first, err := killRecorded(cfg.Bundle)
	if err != nil {
		log.Warn("the first process may live", "task", cfg.ID, "err", err)
	}
	exit := recordedExit(cfg.Bundle, first != nil)

	var errs []error
	r, err := newRuntime(cfg, state.Options, newReaper())
	switch {
	case err != nil:
		// Without it nothing can have been made, or nothing can be done.
		log.Warn("the container may have left something", "task", cfg.ID, "err", err)
	case r.knows(cfg.ID):
		errs = append(errs, r.simple(ctx, cfg.Bundle, "delete", "--force", cfg.ID))
	}
	if first != nil {
		// Now, and not before: frozen processes die when the OCI runtime has
		// thawed them.
		errs = append(errs, first.awaitEnd(killTime))
		first.close()
	}
	if state.Rootfs {
		errs = append(errs, unmountAll(filepath.Join(cfg.Bundle, "rootfs")))
	}
	return exit, errors.Join(errs...)
}

// killRecorded kills the first process if it lives, and no other: the record
// tells it from a later process of the same number. It returns the process
// that it has killed, or nil.
func killRecorded(bundle string) (*pidfd, error) {
	var b birth
	if err := readRecord(bundle, initRecord, &b); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	p, err := openPidfd(b.Pid)
	if err != nil {
		return nil, nil // there is no such process
	}
	if now, err := birthOf(b.Pid); err != nil || now != b {
		p.close()
		return nil, nil
	}
	if err := p.signal(uint32(unix.SIGKILL)); err != nil {
		p.close()
		if errors.Is(err, os.ErrProcessDone) {
			err = nil
		}
		return nil, err
	}
	return p, nil
}

// awaitEnd waits for a process that is not ours to reap.
func (p *pidfd) awaitEnd(limit time.Duration) error {
	fds := []unix.PollFd{{Fd: int32(p.f.Fd()), Events: unix.POLLIN}}
	for deadline := time.Now().Add(limit); ; {
		n, err := unix.Poll(fds, int(max(0, time.Until(deadline)).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("process %d does not die: %w", p.pid, context.DeadlineExceeded)
		default:
			return nil
		}
	}
}

// recordedExit says how the first process ended, as well as it is known.
func recordedExit(bundle string, killed bool) task.Exit {
	var e exitState
	if readRecord(bundle, exitRecord, &e) == nil {
		return task.Exit{Pid: e.Pid, Status: e.Status, At: e.At}
	}
	var b birth
	readRecord(bundle, initRecord, &b)
	exit := task.Exit{Pid: uint32(b.Pid), Status: unknownStatus, At: time.Now().UTC()}
	if killed {
		exit.Status = 128 + uint32(unix.SIGKILL)
	}
	return exit
}
