// Package rebase puts layers that were extracted alone over others.
package rebase

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/kernel"
	"github.com/gantryd/gantry/snapshotd/layer"
	"github.com/gantryd/gantry/snapshotd/tree"
)

// Onto makes the files of a snapshot that was filled without a parent fit the
// tree that below opens, on which it is committed; below is nil if it stays
// alone. Files that were not extracted detached are left as they are.
//
// What a layer could not know while it was extracted: whiteouts hide nothing
// where there is nothing below, and would show up as devices; and directories
// that it has no entry for are to look as they do below. A layer that goes
// through a link of a layer below is [errdefs.ErrFailedPrecondition]: it has to be
// extracted on top of it, in order.
func Onto(ctx context.Context, own *os.File, below func() (*os.File, error)) error {
	r := rebase{own: int(own.Fd()), below: -1}
	if detached, err := r.detached(); err != nil || !detached {
		return err
	}
	if below != nil {
		under, err := below()
		if err != nil {
			return err
		}
		defer under.Close()
		r.below = int(under.Fd())
	}
	// All of it is checked before any of it is changed.
	for _, r.change = range []bool{false, true} {
		if err := tree.Walk(ctx, r.own, r.visit); err != nil {
			return err
		}
	}
	return r.root()
}

// A rebase puts a tree over another.
type rebase struct {
	own    int
	below  int // -1 if there is nothing
	change bool
}

func (r *rebase) visit(e *tree.Entry) error {
	switch {
	case e.Is(unix.S_IFCHR) && e.Stat.Rdev == 0:
		return r.whiteout(e)
	case e.Is(unix.S_IFDIR):
		return r.dir(e)
	}
	return nil
}

// whiteout removes one that hides nothing.
func (r *rebase) whiteout(e *tree.Entry) error {
	if !r.change {
		return nil
	}
	hides, err := r.lstat(e.Path(), nil)
	if err != nil || hides {
		return err
	}
	return unix.Unlinkat(e.Dir, e.Name, 0)
}

// lstat tells whether there is something below under a path without links.
func (r *rebase) lstat(path string, st *unix.Stat_t) (bool, error) {
	if r.below < 0 {
		return false, nil
	}
	var other unix.Stat_t
	if st == nil {
		st = &other
	}
	dir, base := splitPath(path)
	fd, err := tree.OpenPlain(r.below, dir)
	if err == nil {
		defer unix.Close(fd)
		err = unix.Fstatat(fd, base, st, unix.AT_SYMLINK_NOFOLLOW)
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, nil
}

func splitPath(path string) (dir, base string) {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[:i], path[i+1:]
		}
	}
	return "", path
}

// dir gives a directory that the layer only went through the looks of the one
// below.
func (r *rebase) dir(e *tree.Entry) error {
	fd, err := tree.OpenChild(e.Dir, e.Name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if implicit, err := hasAttr(fd, layer.ImplicitAttr); err != nil || !implicit {
		return err
	}
	path := e.Path()
	var st unix.Stat_t
	there, err := r.lstat(path, &st)
	if err != nil {
		return err
	}
	if there && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("%.300q is not a directory in the parent: the layer has to be applied on top of it: %w", path, errdefs.ErrFailedPrecondition)
	}
	if !r.change {
		return nil
	}
	if there {
		if err := r.copyLooks(fd, path, &st); err != nil {
			return fmt.Errorf("%.300q: %w", path, err)
		}
	}
	return unix.Fremovexattr(fd, layer.ImplicitAttr)
}

// detached tells whether a layer was extracted detached.
func (r *rebase) detached() (bool, error) {
	fd, err := tree.Reopen(r.own)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	return hasAttr(fd, layer.DetachedAttr)
}

// root is dir for the root, whose mode is always that of a new snapshot, and
// which cannot be opaque. Its marks go last: with them, all of this can be
// done again.
func (r *rebase) root() error {
	fd, err := tree.Reopen(r.own)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := r.mendRoot(fd); err != nil {
		return err
	}
	return unix.Fremovexattr(fd, layer.DetachedAttr)
}

func (r *rebase) mendRoot(fd int) error {
	implicit, err := hasAttr(fd, layer.ImplicitAttr)
	if err != nil {
		return err
	}
	if implicit {
		if r.below >= 0 {
			var st unix.Stat_t
			if err := unix.Fstat(r.below, &st); err != nil {
				return err
			}
			if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
				return err
			}
		}
		if err := unix.Fremovexattr(fd, layer.ImplicitAttr); err != nil {
			return err
		}
	}
	opaque, err := hasAttr(fd, kernel.OverlayAttrs()+"opaque")
	if err != nil || !opaque {
		return err
	}
	return r.hideAll(fd)
}

// hideAll hides everything that is below.
func (r *rebase) hideAll(fd int) error {
	if r.below < 0 {
		return nil
	}
	below, err := tree.Reopen(r.below)
	if err != nil {
		return err
	}
	defer unix.Close(below)
	names, err := tree.Names(below)
	if err != nil {
		return err
	}
	own, err := tree.Names(fd)
	if err != nil {
		return err
	}
	slices.Sort(own)
	for _, name := range names {
		if _, has := slices.BinarySearch(own, name); !has {
			if err := unix.Mknodat(fd, name, unix.S_IFCHR, 0); err != nil {
				return err
			}
			continue
		}
		dir, err := tree.OpenChild(fd, name)
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue
		}
		if err != nil {
			return err
		}
		err = unix.Fsetxattr(dir, kernel.OverlayAttrs()+"opaque", []byte("y"), 0)
		unix.Close(dir)
		if err != nil {
			return err
		}
	}
	return nil
}

// copyLooks copies owner, mode, extended attributes and times.
func (r *rebase) copyLooks(fd int, path string, st *unix.Stat_t) error {
	from, err := tree.OpenPlain(r.below, path)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	read, err := tree.Reopen(from)
	if err != nil {
		return err
	}
	defer unix.Close(read)
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return err
	}
	if err := layer.CopyAttributes(fd, read); err != nil {
		return err
	}
	return unix.UtimesNanoAt(fd, ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
}

func hasAttr(fd int, name string) (bool, error) {
	_, err := unix.Fgetxattr(fd, name, nil)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	return err == nil, err
}
