package client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

// A Container is a container's record and what can be done with it.
type Container struct {
	container.Container

	n      *Namespace
	mounts []mount.Mount // of the snapshot, if known
}

// Container returns a container that exists.
func (n *Namespace) Container(ctx context.Context, id string) (*Container, error) {
	k := &Container{n: n}
	err := once(ctx, func(ctx context.Context) (err error) {
		k.Container, err = n.c.Containers.In(n.scope("")).Get(ctx, id)
		return err
	})
	return k, err
}

func (k *Container) tasks() task.Service { return k.n.c.Tasks.In(k.n.scope("")) }

// Start creates the container's task and starts its first process. A program
// that cannot be run is an error, and then there is no task.
func (k *Container) Start(ctx context.Context, s Streams) (*Process, error) {
	if err := k.findMounts(ctx); err != nil {
		return nil, err
	}
	io, err := openStdio(k.n.c.IODir, s)
	if err != nil {
		return nil, err
	}
	tasks := k.tasks()
	err = again(ctx, callTime, func(ctx context.Context, repeated bool) error {
		_, err := tasks.Create(ctx, task.CreateRequest{ContainerID: k.ID, Rootfs: k.mounts, IO: io.io})
		if repeated {
			return notExists(err)
		}
		return err
	})
	if err != nil {
		io.close()
		return nil, err
	}
	p, err := begin(ctx, tasks, k.ID, "", io, s)
	if err != nil {
		ctx, cancel := clean(ctx)
		defer cancel()
		return nil, errors.Join(err, k.removeTask(ctx))
	}
	return p, nil
}

func (k *Container) findMounts(ctx context.Context) error {
	if k.mounts != nil || k.SnapshotKey == "" {
		return nil
	}
	store, err := k.n.c.Snapshots.In(k.n.scope(""), k.Snapshotter)
	if err != nil {
		return err
	}
	return once(ctx, func(ctx context.Context) error {
		k.mounts, err = store.Mounts(ctx, k.SnapshotKey)
		return err
	})
}

// Exec runs another process in the container's task. It has the environment,
// the working directory, the user and the limits of the container's first, but
// for what p says.
func (k *Container) Exec(ctx context.Context, p Program, s Streams) (*Process, error) {
	value, err := k.execSpec(p)
	if err != nil {
		return nil, err
	}
	io, err := openStdio(k.n.c.IODir, s)
	if err != nil {
		return nil, err
	}
	tasks, exec := k.tasks(), "exec-"+strings.ToLower(rand.Text()[:12])
	err = again(ctx, callTime, func(ctx context.Context, repeated bool) error {
		err := tasks.Exec(ctx, task.ExecRequest{ContainerID: k.ID, ExecID: exec, Spec: value, IO: io.io})
		if repeated {
			return notExists(err)
		}
		return err
	})
	if err != nil {
		io.close()
		return nil, err
	}
	started, err := begin(ctx, tasks, k.ID, exec, io, s)
	if err != nil {
		ctx, cancel := clean(ctx)
		defer cancel()
		_, e := tasks.DeleteProcess(ctx, k.ID, exec)
		return nil, errors.Join(err, onlyDone(e))
	}
	return started, nil
}

func (k *Container) execSpec(p Program) (typed.Value, error) {
	var spec specs.Spec
	if k.Spec == nil || json.Unmarshal(k.Spec.Data, &spec) != nil || spec.Process == nil {
		return typed.Value{}, fmt.Errorf("container %s: its spec is not one of Linux: %w", k.ID, errdefs.ErrFailedPrecondition)
	}
	old := spec.Process
	p.Env = append(slices.Clip(old.Env), p.Env...)
	if p.Cwd == "" {
		p.Cwd = old.Cwd
	}
	user := p.User
	p.User = ""
	process, err := p.process()
	if err != nil {
		return typed.Value{}, err
	}
	if user != "" {
		u, err := ParseUser(user)
		if err != nil {
			return typed.Value{}, err
		}
		process.User = specs.User{UID: u.UID, GID: u.GID, AdditionalGids: []uint32{u.GID}}
	} else {
		process.User = old.User
	}
	process.Capabilities, process.Rlimits = old.Capabilities, old.Rlimits
	process.NoNewPrivileges = old.NoNewPrivileges
	process.ApparmorProfile, process.SelinuxLabel, process.OOMScoreAdj = old.ApparmorProfile, old.SelinuxLabel, old.OOMScoreAdj
	b, err := json.Marshal(process)
	return typed.Value{URL: processURL, Data: b}, err
}

// Stop ends the container's first process: with the signal that its image wants,
// and if it has not ended after patience, with SIGKILL. A task that has ended
// is no error; a container without one is [errdefs.ErrNotFound].
func (k *Container) Stop(ctx context.Context, patience time.Duration) (task.Exit, error) {
	signal, err := ParseSignal(first(k.Labels[labelStopSignal], "TERM"))
	if err != nil {
		signal = sigTERM
	}
	if exit, err := k.kill(ctx, signal, patience); !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return exit, err
	}
	return k.kill(ctx, sigKILL, cleanTime)
}

// kill sends a signal to every process of the task and waits for the end of the
// first.
func (k *Container) kill(ctx context.Context, signal uint32, patience time.Duration) (task.Exit, error) {
	tasks := k.tasks()
	err := once(ctx, func(ctx context.Context) error {
		return tasks.Kill(ctx, k.ID, "", signal, signal == sigKILL)
	})
	if err != nil && !ended(err) {
		return task.Exit{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return wait(ctx, tasks, k.ID, "")
}

// Delete removes the container, its task and its snapshot. A task that runs is
// [errdefs.ErrFailedPrecondition], unless force kills it.
func (k *Container) Delete(ctx context.Context, force bool) error {
	if force {
		if _, err := k.kill(ctx, sigKILL, cleanTime); err != nil && !ended(err) {
			return err
		}
	}
	if err := k.removeTask(ctx); err != nil {
		return err
	}
	return k.Remove(ctx)
}

func (k *Container) removeTask(ctx context.Context) error {
	return once(ctx, func(ctx context.Context) error {
		_, err := k.tasks().Delete(ctx, k.ID)
		return onlyDone(err)
	})
}

// Remove removes record and snapshot of a container without a task. A snapshot without its container belongs
// to nobody, so it does not matter which of both is faster.
func (k *Container) Remove(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error {
		return once(ctx, func(ctx context.Context) error {
			return onlyDone(k.n.c.Containers.In(k.n.scope("")).Delete(ctx, k.ID))
		})
	})
	g.Go(func() error {
		if k.SnapshotKey == "" {
			return nil
		}
		store, err := k.n.c.Snapshots.In(k.n.scope(""), k.Snapshotter)
		if err != nil {
			return err
		}
		return once(ctx, func(ctx context.Context) error {
			return onlyDone(store.Remove(ctx, k.SnapshotKey))
		})
	})
	return g.Wait()
}
