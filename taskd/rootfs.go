package taskd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
)

// labelContainer has the collector keep an activation as long as its container
// is there.
const labelContainer = "containerd.io/gc.bref.container"

// handled are the types of mounts that shims leave to others.
var handled = []string{"loop", "erofs"}

// activate has those of a task's mounts made that its shim cannot make, such as
// of images that are files, and returns what is left to the shim: for most tasks
// all of them, and nobody is asked. That there may be something to undo is
// recorded before there is.
func (s *Store) activate(ctx context.Context, l *live, rootfs []mount.Mount) ([]mount.Mount, error) {
	if s.activations == nil || activation.NewPlan(rootfs, activation.Options{}, handled...).First < 0 {
		return rootfs, nil
	}
	rec := l.record()
	rec.Activation = "task-" + l.id + "-" + rec.Instance
	if err := l.save(s.disk, rec); err != nil {
		return nil, err
	}
	l.setRecord(rec)
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	info, err := s.activations.In(namespace.Scope{Name: l.namespace}).Activate(ctx, rec.Activation, rootfs, activation.Options{
		Labels: map[string]string{labelContainer: l.id},
	})
	if errors.Is(err, errdefs.ErrNotImplemented) {
		return rootfs, nil // the shim may know them
	}
	if err != nil {
		return nil, fmt.Errorf("its root file system: %w", err)
	}
	return info.System, nil
}

// deactivate undoes activate for a bundle whose shim has gone.
func (s *Store) deactivate(ctx context.Context, namespaceName, trash string) error {
	rec, err := bundle{dir: trash}.load()
	if errors.Is(err, fs.ErrNotExist) || err == nil && rec.Activation == "" {
		return nil
	}
	if err != nil {
		return err
	}
	if s.activations == nil {
		return fmt.Errorf("activation %s: %w", rec.Activation, errdefs.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err = s.activations.In(namespace.Scope{Name: namespaceName}).Deactivate(ctx, rec.Activation)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	return err
}
