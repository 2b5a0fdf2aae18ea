package mounter

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/detached"
	"github.com/gantryd/gantry/services/idmap"
	"github.com/gantryd/gantry/services/mount"
)

// usersOf makes what a mount with the ids of a container needs; nil for one with
// those of the files.
func usersOf(m mount.Mount, ids idmap.Map) (users *os.File, done func(), err error) {
	if ids.IsZero() {
		return nil, func() {}, nil
	}
	if m.Type == "loop" {
		return nil, nil, fmt.Errorf("loop device with other ids: %w", errdefs.ErrNotImplemented)
	}
	if users, err = detached.Users(ids); err != nil {
		return nil, nil, err
	}
	return users, func() { users.Close() }, nil
}

// setUsers shows a mount that is attached nowhere with the ids of a user
// namespace.
func setUsers(m, users *os.File, recursive bool) error {
	return known(detached.SetUsers(m, users, recursive))
}

// withUsers is a directory with the ids of a user namespace.
func withUsers(dir, users *os.File) (*os.File, error) {
	f, err := detached.Copy(fdPath(dir), users, false)
	return f, known(err)
}

// known gives the kind to what the kernel or the file system does not have.
func known(err error) error {
	if errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("%v: %w", err, errdefs.ErrNotImplemented)
	}
	return err
}
