package rebase

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/layer"
	"github.com/gantryd/gantry/snapshotd/tree"
)

// change mends.
func (r *rebase) change(e *tree.Entry) error {
	switch {
	case isWhiteout(e):
		return r.whiteout(e)
	case e.Is(unix.S_IFDIR):
		return r.dir(e)
	}
	return nil
}

// whiteout removes one that hides nothing.
func (r *rebase) whiteout(e *tree.Entry) error {
	hides, err := r.lstat(e.Path(), nil)
	if err != nil || hides {
		return err
	}
	return keepTimes(e.Dir, func() error { return unix.Unlinkat(e.Dir, e.Name, 0) })
}

// keepTimes calls f, which changes a directory, and gives the directory the times
// that it had before.
func keepTimes(dir int, f func() error) error {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return unix.UtimesNanoAt(dir, ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// dir gives a directory that the layer only went through the looks of the one
// below.
func (r *rebase) dir(e *tree.Entry) error {
	kind, _, err := kindOf(e)
	if err != nil || kind == "" {
		return err
	}
	path := e.Path()
	var st unix.Stat_t
	there, err := r.lstat(path, &st)
	if err != nil {
		return err
	}
	fd, err := tree.OpenChild(e.Dir, e.Name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if there && kind == layer.Implicit {
		if err := r.look(fd, path, &st); err != nil {
			return fmt.Errorf("%.300q: %w", path, err)
		}
	}
	return unix.Fremovexattr(fd, layer.ImplicitAttr)
}

func (r *rebase) look(fd int, path string, st *unix.Stat_t) error {
	from, err := r.openBelow(path)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	return copyLooks(fd, from, st)
}

// prune removes directories that only whiteouts went through, the lowest first:
// there is nothing in them, and they hide nothing.
func (r *rebase) prune(ctx context.Context) error {
	for _, path := range slices.Backward(r.empty) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.pruneOne(path); err != nil {
			return fmt.Errorf("%.300q: %w", path, err)
		}
	}
	return nil
}

func (r *rebase) pruneOne(path string) error {
	parent, base := splitPath(path)
	at, err := tree.OpenPlain(r.own, parent)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	dir, err := tree.Reopen(at)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	fd, err := tree.OpenChild(dir, base)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if empty, err := tree.Empty(fd); err != nil || !empty {
		return err
	}
	return keepTimes(dir, func() error { return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR) })
}

// copyLooks copies owner, mode, extended attributes and times.
func copyLooks(fd, from int, st *unix.Stat_t) error {
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return err
	}
	if err := layer.CopyAttributes(fd, from); err != nil {
		return err
	}
	return unix.UtimesNanoAt(fd, ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
}
