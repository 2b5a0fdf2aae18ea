package shim

import (
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/detached"
	"github.com/gantryd/gantry/services/idmap"
)

// A mappedMount shows files with the ids of a container that has users of its
// own: a bind mount all of them, an overlay those of the layers below.
type mappedMount struct {
	source, kind       string
	flags, propagation uintptr
	data               []string
	ids                idmap.Map
}

// attributes are the flags of mount(2) that are the same bits of a mount that is
// not attached yet.
const attributes = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// on attaches it to a directory, when it is as it is to be.
func (m mappedMount) on(target string) error {
	if rest := m.flags &^ (attributes | unix.MS_BIND | unix.MS_REC | unix.MS_RELATIME); rest != 0 {
		return fmt.Errorf("flags %#x of a mount with other ids: %w", rest, errdefs.ErrNotImplemented)
	}
	f, err := m.make()
	if err != nil {
		return err
	}
	defer f.Close()
	var below uint
	if m.flags&unix.MS_REC != 0 {
		below = unix.AT_RECURSIVE
	}
	attr := unix.MountAttr{Attr_set: uint64(m.flags & attributes), Propagation: uint64(m.propagation &^ unix.MS_REC)}
	if attr != (unix.MountAttr{}) {
		if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH|below, &attr); err != nil {
			return fmt.Errorf("attributes: %w", err)
		}
	}
	if err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return nil
}

func (m mappedMount) make() (*os.File, error) {
	if m.kind != "overlay" && m.flags&unix.MS_BIND == 0 {
		return nil, fmt.Errorf("type %.100q with other ids: %w", m.kind, errdefs.ErrNotImplemented)
	}
	users, err := detached.Users(m.ids)
	if err != nil {
		return nil, err
	}
	defer users.Close()
	if m.flags&unix.MS_BIND != 0 {
		return detached.Copy(m.source, users, m.flags&unix.MS_REC != 0)
	}
	var lower, options []string
	for _, o := range m.data {
		if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
			lower = strings.Split(dirs, ":")
		} else {
			options = append(options, o)
		}
	}
	if len(lower) == 0 {
		return nil, fmt.Errorf("overlay without a directory below: %w", errdefs.ErrInvalidArgument)
	}
	return detached.Overlay(lower, options, users)
}
