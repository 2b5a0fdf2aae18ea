package client

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/task"
)

// A Process is a process of a container that was started here: the first, or
// one that Exec added.
type Process struct {
	Pid uint32

	tasks    task.Service
	id, exec string
	stdio    *stdio
	stop     context.CancelFunc // of the wait
	ended    chan struct{}      // closed when the next two are set
	exit     task.Exit
	err      error
}

// begin starts a created process. The wait is under way before it starts, so
// that its end is known as soon as it happens.
func begin(ctx context.Context, tasks task.Service, id, exec string, io *stdio, in Streams) (*Process, error) {
	waitCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	p := &Process{tasks: tasks, id: id, exec: exec, stdio: io, stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		p.exit, p.err = wait(waitCtx, tasks, id, exec)
	}()
	io.start(in.In, func() {
		// It is a courtesy: the process may have ended.
		ctx, cancel := context.WithTimeout(waitCtx, callTime)
		defer cancel()
		_ = tasks.CloseIO(ctx, id, exec)
	})
	err := again(ctx, callTime, func(ctx context.Context, repeated bool) error {
		if repeated {
			now, err := tasks.Get(ctx, id, exec)
			if err != nil || now.Status != task.Created {
				p.Pid = now.Pid
				return err
			}
		}
		pid, err := tasks.Start(ctx, id, exec)
		if repeated && errors.Is(err, errdefs.ErrFailedPrecondition) {
			// The start before it was still under way, and is done now.
			if now, err := tasks.Get(ctx, id, exec); err == nil && now.Status != task.Created {
				p.Pid = now.Pid
				return nil
			}
		}
		p.Pid = pid
		return err
	})
	if err != nil {
		p.Close()
		return nil, err
	}
	io.opened()
	return p, nil
}

// wait returns how a process ended, also if the daemon that knows restarts
// meanwhile, however often.
func wait(ctx context.Context, tasks task.Service, id, exec string) (task.Exit, error) {
	for pause := pauseFirst; ; pause = min(2*pause, pauseMax) {
		exit, err := tasks.Wait(ctx, id, exec)
		if !errdefs.IsUnavailable(err) || !sleep(ctx, pause) {
			return exit, err
		}
	}
}

// Wait returns how the process ended, when all that it wrote has been written
// to its streams.
func (p *Process) Wait(ctx context.Context) (task.Exit, error) {
	select {
	case <-ctx.Done():
		return task.Exit{}, ctx.Err()
	case <-p.ended:
	}
	if p.err == nil {
		p.stdio.drain()
	}
	return p.exit, p.err
}

// Kill sends the process a signal, as Linux counts them. One that has ended is
// [errdefs.ErrNotFound].
func (p *Process) Kill(ctx context.Context, signal uint32) error {
	return once(ctx, func(ctx context.Context) error {
		return p.tasks.Kill(ctx, p.id, p.exec, signal, false)
	})
}

// Resize sets the size of the process's terminal, in characters.
func (p *Process) Resize(ctx context.Context, width, height uint32) error {
	return p.tasks.ResizePty(ctx, p.id, p.exec, width, height)
}

// Close lets go of the process's streams and stops waiting for it. It runs on.
func (p *Process) Close() {
	p.stop()
	<-p.ended
	p.stdio.close()
}

// Delete closes p and removes what the node keeps of a process that has ended.
func (p *Process) Delete(ctx context.Context) error {
	p.Close()
	return once(ctx, func(ctx context.Context) error {
		var err error
		if p.exec == "" {
			_, err = p.tasks.Delete(ctx, p.id)
		} else {
			_, err = p.tasks.DeleteProcess(ctx, p.id, p.exec)
		}
		return onlyDone(err)
	})
}

// ended says whether an error means that there is no such process any more.
func ended(err error) bool { return errors.Is(err, errdefs.ErrNotFound) }
