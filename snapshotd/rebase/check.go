package rebase

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/kernel"
	"github.com/gantryd/gantry/snapshotd/layer"
	"github.com/gantryd/gantry/snapshotd/tree"
)

// refuse is the error for a layer that has to be applied in its place.
func refuse(path, why string) error {
	return fmt.Errorf("%.300q %s: the layer has to be applied on top of its parent: %w", path, why, errdefs.ErrFailedPrecondition)
}

// check finds what cannot be mended.
func (r *rebase) check(e *tree.Entry) error {
	switch {
	case isWhiteout(e):
		r.work = true
	case e.Is(unix.S_IFDIR):
		return r.checkDir(e)
	}
	return nil
}

func (r *rebase) checkDir(e *tree.Entry) error {
	kind, opaque, err := kindOf(e)
	if err != nil {
		return err
	}
	if kind == "" {
		return nil
	}
	r.work = true
	path := e.Path()
	var st unix.Stat_t
	there, err := r.lstat(path, &st)
	if err != nil {
		return err
	}
	if kind == layer.Implicit {
		if err := r.mayBeEmpty(path); err != nil {
			return err
		}
	}
	switch {
	case there && kind == layer.Implicit && opaque:
		// What is in it decides whether it is there, or hidden with the rest.
		return refuse(path, "is hidden and gone through")
	case there && st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return refuse(path, "is not a directory in the parent")
	case !there:
		return r.checkHeir(e, path)
	case kind == layer.Implicit:
		return checkLooks(e, path)
	}
	return nil
}

func (r *rebase) mayBeEmpty(path string) error {
	if r.size += len(path) + 16; r.size > emptyMax {
		return refuse(path, "is one of too many directories without an entry")
	}
	r.empty = append(r.empty, path)
	return nil
}

// checkLooks refuses a directory that has got an access list from the one that it
// is in, where it is to look as it does below.
func checkLooks(e *tree.Entry, path string) error {
	own, err := tree.OpenChild(e.Dir, e.Name)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	listed, err := hasAttr(own, "system.posix_acl_access")
	if err == nil && !listed {
		listed, err = hasAttr(own, aclDefault)
	}
	if err == nil && listed {
		err = refuse(path, "has its access list from the directory that it is in")
	}
	return err
}

const aclDefault = "system.posix_acl_default"

// checkHeir refuses a directory that was made without an entry, and with nothing
// below, where it or the one that it is in hands down a group or an access list:
// what it has of that, and what is in it, depends on when it was made.
func (r *rebase) checkHeir(e *tree.Entry, path string) error {
	own, err := tree.OpenChild(e.Dir, e.Name)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	dirs := []int{own, e.Dir}
	dir, _ := splitPath(path)
	var st unix.Stat_t
	if there, err := r.lstat(dir, &st); err != nil {
		return err
	} else if there && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		below, err := r.openBelow(dir)
		if err != nil {
			return err
		}
		defer unix.Close(below)
		dirs = append(dirs, below)
	}
	for _, d := range dirs {
		if hands, err := handsDown(d); err != nil {
			return err
		} else if hands {
			return refuse(path, "may have its group or access list from the directory that it is in")
		}
	}
	return nil
}

func handsDown(dir int) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil || st.Mode&unix.S_ISGID != 0 {
		return err == nil, err
	}
	return hasAttr(dir, aclDefault)
}

// openBelow opens a directory that is below for reading.
func (r *rebase) openBelow(path string) (int, error) {
	at, err := tree.OpenPlain(r.below, path)
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	return tree.Reopen(at)
}

// kindOf returns how the layer came to a directory: empty if by an entry; and
// whether it hides what is below.
func kindOf(e *tree.Entry) (kind string, opaque bool, err error) {
	fd, err := tree.OpenChild(e.Dir, e.Name)
	if err != nil {
		return "", false, err
	}
	defer unix.Close(fd)
	if kind, err = attrAt(fd, layer.ImplicitAttr); kind == "" || err != nil {
		return kind, false, err
	}
	opaque, err = hasAttr(fd, kernel.OverlayAttrs()+"opaque")
	return kind, opaque, err
}

// attrAt returns one of the short values of the marks; empty if there is none.
func attrAt(fd int, name string) (string, error) {
	var b [8]byte
	n, err := unix.Fgetxattr(fd, name, b[:])
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return "", nil
	}
	return string(b[:max(n, 0)]), err
}

func hasAttr(fd int, name string) (bool, error) {
	_, err := unix.Fgetxattr(fd, name, nil)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	return err == nil, err
}
