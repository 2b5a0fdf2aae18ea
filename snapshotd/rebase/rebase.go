// Package rebase puts layers that were extracted alone over others.
package rebase

import (
	"context"
	"errors"
	"os"
	"slices"

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
// where there is nothing below, and would show up as devices; directories that
// it has no entry for are to look as they do below; and directories that only
// whiteouts went through are not there if they are not below.
//
// A layer that would have become something else on top of what is below is
// [errdefs.ErrFailedPrecondition], and unchanged: one that goes through a link, or
// something that is no directory, makes things in a directory that hands down
// its group or its access list, or has one entry in the place of another.
func Onto(ctx context.Context, own *os.File, below func() (*os.File, error)) error {
	r := rebase{own: int(own.Fd()), below: -1}
	kind, err := r.detached()
	switch {
	case err != nil || kind == "":
		return err
	case kind == layer.Grounded && below != nil:
		return refuse("", "has one entry in the place of another")
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
	if err := tree.Walk(ctx, r.own, r.check); err != nil {
		return err
	}
	if r.work {
		if err := tree.Walk(ctx, r.own, r.change); err != nil {
			return err
		}
	}
	if err := r.prune(ctx); err != nil {
		return err
	}
	return r.root()
}

// A rebase puts a tree over another.
type rebase struct {
	own   int
	below int  // -1 if there is nothing
	work  bool // there is something to be changed

	empty []string // directories that may have been made for whiteouts only
	size  int      // of empty, in bytes
}

const (
	// emptyMax is how long the list of them becomes, in bytes.
	emptyMax = 8 << 20

	// namesMax is how much memory the names in two roots may take, in bytes.
	namesMax = 64 << 20
)

func isWhiteout(e *tree.Entry) bool { return e.Is(unix.S_IFCHR) && e.Stat.Rdev == 0 }

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

// detached returns how a layer was extracted: empty if not detached.
func (r *rebase) detached() (string, error) {
	fd, err := tree.Reopen(r.own)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return attrAt(fd, layer.DetachedAttr)
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
	kind, err := attrAt(fd, layer.ImplicitAttr)
	if err != nil {
		return err
	}
	if kind != "" {
		if kind == layer.Implicit && r.below >= 0 {
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
	if err := keepTimes(fd, func() error { return r.hideAll(fd) }); err != nil {
		return err
	}
	return unix.Fremovexattr(fd, kernel.OverlayAttrs()+"opaque")
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
	budget := tree.NewBudget(namesMax)
	names, err := tree.Names(below, budget)
	if err != nil {
		return err
	}
	own, err := tree.Names(fd, budget)
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
