package tasktest

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

// A conn is a connection to a [Shim]: its calls fail when the shim is dead or
// the connection closed, and end with their context when it is mute.
type conn struct {
	s    *Shim
	done chan struct{} // closed under s.mu
}

var _ task.Shim = (*conn)(nil)

func (c *conn) Done() <-chan struct{} { return c.done }

func (c *conn) Close() error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.conns[c] {
		delete(c.s.conns, c)
		close(c.done)
	}
	return nil
}

// call makes one call across the connection.
func call[T any](c *conn, ctx context.Context, do func(ctx context.Context) (T, error)) (T, error) {
	var zero T
	gone := fmt.Errorf("shim: connection is gone: %w", errdefs.ErrUnavailable)
	c.s.mu.Lock()
	mute := c.s.mute
	c.s.mu.Unlock()
	if mute != nil {
		select {
		case <-mute:
		case <-c.done:
		case <-ctx.Done():
			return zero, ctx.Err()
		}
	}
	select {
	case <-c.done:
		return zero, gone
	default:
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	answered := make(chan struct{})
	defer close(answered)
	go func() {
		select {
		case <-c.done:
			cancel(gone)
		case <-answered:
		}
	}()
	v, err := do(ctx)
	if err != nil && context.Cause(ctx) == gone {
		return zero, gone
	}
	return v, err
}

func none(err error) (struct{}, error) { return struct{}{}, err }

func (c *conn) Create(ctx context.Context, r task.ShimCreate) (uint32, error) {
	return call(c, ctx, func(ctx context.Context) (uint32, error) { return c.s.Create(ctx, r) })
}

func (c *conn) Delete(ctx context.Context, id string) (task.Exit, error) {
	return call(c, ctx, func(ctx context.Context) (task.Exit, error) { return c.s.Delete(ctx, id) })
}

func (c *conn) Get(ctx context.Context, id, exec string) (task.Process, error) {
	return call(c, ctx, func(ctx context.Context) (task.Process, error) { return c.s.Get(ctx, id, exec) })
}

func (c *conn) Pause(ctx context.Context, id string) error {
	_, err := call(c, ctx, func(ctx context.Context) (struct{}, error) { return none(c.s.Pause(ctx, id)) })
	return err
}

func (c *conn) Resume(ctx context.Context, id string) error {
	_, err := call(c, ctx, func(ctx context.Context) (struct{}, error) { return none(c.s.Resume(ctx, id)) })
	return err
}

func (c *conn) Pids(ctx context.Context, id string) ([]task.ProcessInfo, error) {
	return call(c, ctx, func(ctx context.Context) ([]task.ProcessInfo, error) { return c.s.Pids(ctx, id) })
}

func (c *conn) Update(ctx context.Context, id string, v typed.Value, a map[string]string) error {
	_, err := call(c, ctx, func(ctx context.Context) (struct{}, error) { return none(c.s.Update(ctx, id, v, a)) })
	return err
}

func (c *conn) Checkpoint(ctx context.Context, id, path string, o *typed.Value) error {
	_, err := call(c, ctx, func(ctx context.Context) (struct{}, error) { return none(c.s.Checkpoint(ctx, id, path, o)) })
	return err
}

func (c *conn) Stats(ctx context.Context, id string) (*typed.Value, error) {
	return call(c, ctx, func(ctx context.Context) (*typed.Value, error) { return c.s.Stats(ctx, id) })
}

func (c *conn) Exec(ctx context.Context, r task.ExecRequest) error {
	_, err := call(c, ctx, func(ctx context.Context) (struct{}, error) { return none(c.s.Exec(ctx, r)) })
	return err
}

func (c *conn) Start(ctx context.Context, id, exec string) (uint32, error) {
	return call(c, ctx, func(ctx context.Context) (uint32, error) { return c.s.Start(ctx, id, exec) })
}

func (c *conn) Wait(ctx context.Context, id, exec string) (task.Exit, error) {
	return call(c, ctx, func(ctx context.Context) (task.Exit, error) { return c.s.Wait(ctx, id, exec) })
}

func (c *conn) Kill(ctx context.Context, id, exec string, signal uint32, all bool) error {
	_, err := call(c, ctx, func(ctx context.Context) (struct{}, error) { return none(c.s.Kill(ctx, id, exec, signal, all)) })
	return err
}

func (c *conn) DeleteProcess(ctx context.Context, id, exec string) (task.Exit, error) {
	return call(c, ctx, func(ctx context.Context) (task.Exit, error) { return c.s.DeleteProcess(ctx, id, exec) })
}

func (c *conn) ResizePty(ctx context.Context, id, exec string, w, h uint32) error {
	_, err := call(c, ctx, func(ctx context.Context) (struct{}, error) { return none(c.s.ResizePty(ctx, id, exec, w, h)) })
	return err
}

func (c *conn) CloseIO(ctx context.Context, id, exec string) error {
	_, err := call(c, ctx, func(ctx context.Context) (struct{}, error) { return none(c.s.CloseIO(ctx, id, exec)) })
	return err
}

func (c *conn) Info(ctx context.Context, id string) (task.ShimInfo, error) {
	return call(c, ctx, func(ctx context.Context) (task.ShimInfo, error) { return c.s.Info(ctx, id) })
}

func (c *conn) Shutdown(ctx context.Context, id string) error {
	_, err := call(c, ctx, func(ctx context.Context) (struct{}, error) { return none(c.s.Shutdown(ctx, id)) })
	return err
}
