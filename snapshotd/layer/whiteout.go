package layer

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/tree"
)

const (
	whiteoutPrefix = ".wh."
	aufsPrefix     = ".wh..wh."
	opaqueName     = ".wh..wh..opq"
)

// A whiteout hides a name in a directory, or with an empty name all that the
// directory has in the layers below.
type whiteout struct {
	dir  string // path in the tree, without links
	name string
}

// liftedMax is how many links to files of the layers below a layer may have.
// Tools that make layers make none.
const liftedMax = 10_000

// namesMax is how much memory the names in the root may take, in bytes, where all
// of it is hidden.
const namesMax = 32 << 20

// whiteouts are those that wait for the end.
type whiteouts struct {
	list   []whiteout
	size   int
	lifted map[string]struct{}
}

func (l *whiteouts) add(dir, name string) {
	l.list = append(l.list, whiteout{dir, name})
	l.size += len(dir) + len(name) + 48
}

func (l *whiteouts) full() bool { return l.size > listMax }

func (l *whiteouts) lift(path string) error {
	if l.lifted == nil {
		l.lifted = make(map[string]struct{})
	}
	if len(l.lifted) == liftedMax {
		return fmt.Errorf("more than %d links out of the layer: %w", liftedMax, errdefs.ErrInvalidArgument)
	}
	l.lifted[path] = struct{}{}
	return nil
}

// whiteout notes the whiteout called base in the directory that dir names.
func (x *extractor) whiteout(dir, base string) error {
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	switch {
	case base == opaqueName:
		hidden = ""
	case strings.HasPrefix(base, aufsPrefix):
		return nil // other housekeeping of AUFS, whose idea whiteouts were
	case hidden == "", hidden == ".", hidden == "..":
		return fmt.Errorf("whiteout of %q: %w", hidden, errdefs.ErrInvalidArgument)
	}
	if !x.target.Overlay && x.made.off {
		return nil // there was nothing before
	}
	look := x.dirs.find
	if x.target.Detached {
		look = x.dirs.get // who knows what is below
	}
	d, err := look(dir)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return x.lacks(err)
	}
	if x.stacked {
		// What is not there need not be hidden.
		var st unix.Stat_t
		err := unix.Fstatat(d.fd, hidden, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
		// A change that changes nothing brings the directory into Own.
		if err := unix.Fchownat(d.fd, "", -1, -1, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	at, err := x.dirs.path(d)
	if err != nil {
		return err
	}
	if at == "" && hidden == "" && x.stacked {
		return x.hideAll()
	}
	x.whiteouts.add(at, hidden)
	return nil
}

// hideAll hides everything in the root, which overlayfs does not let be opaque.
func (x *extractor) hideAll() error {
	names, err := x.names(int(x.root.Fd()))
	for _, name := range names {
		x.whiteouts.add("", name)
	}
	return err
}

func (x *extractor) names(dir int) ([]string, error) {
	fd, err := tree.Reopen(dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return tree.Names(fd, tree.NewBudget(namesMax))
}

// owns tells whether this layer has something of that name.
func (x *extractor) owns(dir, name string) (bool, error) {
	fd, err := tree.OpenPlain(x.own, dir)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	err = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil && !isWhiteout(&st), err
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// hide turns the noted whiteouts into what the target wants. The tree is
// closed, so that nothing is mounted over Own.
func (x *extractor) hide() error {
	for _, w := range x.whiteouts.list {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		if err := x.hideOne(w); err != nil {
			return fmt.Errorf("whiteout of %.300q: %w", join(w.dir, w.name), err)
		}
	}
	x.whiteouts = whiteouts{}
	return nil
}

func (x *extractor) hideOne(w whiteout) error {
	dir, err := tree.OpenPlain(x.own, w.dir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // the layer has put something else in its place
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	var before unix.Stat_t
	if err := unix.Fstat(dir, &before); err != nil {
		return err
	}
	if w.name == "" {
		err = x.hideBelow(dir, w.dir)
	} else {
		err = x.hideName(dir, w)
	}
	if err != nil {
		return err
	}
	// The directory has the times that its entry said.
	return unix.UtimesNanoAt(dir, ".", []unix.Timespec{before.Atim, before.Mtim}, 0)
}

// hideBelow hides all that a directory had before this layer.
func (x *extractor) hideBelow(dir int, path string) error {
	if !x.made.off {
		if err := x.sift(dir, path); err != nil {
			return err
		}
	}
	if !x.target.Overlay {
		return nil
	}
	return x.opaque(dir)
}

func (x *extractor) opaque(dir int) error {
	fd, err := tree.Reopen(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fsetxattr(fd, x.target.Attr+"opaque", []byte("y"), 0)
}

// hideName hides one name. What this layer has under it stays.
func (x *extractor) hideName(dir int, w whiteout) error {
	_, lifted := x.whiteouts.lifted[join(w.dir, w.name)]
	switch {
	case lifted:
		if err := tree.Remove(x.ctx, dir, w.name); err != nil {
			return err
		}
	case !x.made.off:
		if err := x.removeOld(dir, w.dir, w.name); err != nil {
			return err
		}
	}
	if !x.target.Overlay {
		return nil
	}
	var st unix.Stat_t
	err := unix.Fstatat(dir, w.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return unix.Mknodat(dir, w.name, unix.S_IFCHR, 0)
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil // hides it already
	}
	fd, err := tree.OpenChild(dir, w.name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return x.opaque(fd)
}

// removeOld removes what is called name, but for what this layer made in it.
func (x *extractor) removeOld(dir int, at, name string) error {
	path := join(at, name)
	if len(path) > pathMax {
		return unix.ENAMETOOLONG
	}
	fd, err := tree.OpenChild(dir, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		if x.made.has(path) {
			return nil
		}
		return tree.Remove(x.ctx, dir, name)
	}
	defer unix.Close(fd)
	if err := x.sift(fd, path); err != nil {
		return err
	}
	if x.made.has(path) {
		return nil
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// sift removes what is in a directory, but for what this layer made.
func (x *extractor) sift(dir int, at string) error {
	return tree.Sift(x.ctx, dir, func(path string) bool { return x.made.has(join(at, path)) })
}
