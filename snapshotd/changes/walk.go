package changes

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/tree"
)

// pathMax is the longest path that a layer can be told of, in bytes: the
// kernel's, less what marks a whiteout or a directory.
const pathMax = 4090

// A visitor is told what a walk meets, a directory before what is in it.
type visitor interface {
	file(w *walker, e *entry) error
	dir(w *walker, e *entry) error // the walker is in it
}

// An entry is a name in a directory, with what both trees have under it.
type entry struct {
	name         string
	lower, upper *unix.Stat_t // nil if there is nothing
}

// A walker goes through two trees at once.
type walker struct {
	ctx     context.Context
	trees   Trees
	lower   *tree.Cursor // nil if there is no tree
	upper   *tree.Cursor
	levels  []level
	path    []byte // of what is being visited
	visitor visitor
	budget  *tree.Budget

	bufs [2][]byte // to compare with
}

// A level is a directory on the way down.
type level struct {
	names  []name // yet to be visited
	both   bool   // the lower cursor is in it too
	opaque bool   // what the lower one has is not seen
	took   int64  // of the budget, for names
	path   int    // how long the path of it is
	told   bool

	stat, below unix.Stat_t // when it was entered
}

type name struct {
	name         string
	lower, upper bool // has it
}

func walk(ctx context.Context, t Trees, b *tree.Budget, v visitor) error {
	w := &walker{ctx: ctx, trees: t, budget: b, visitor: v}
	var err error
	if w.upper, err = tree.NewCursor(int(t.Upper.Fd())); err != nil {
		return err
	}
	defer w.upper.Close()
	if t.Lower != nil {
		if w.lower, err = tree.NewCursor(int(t.Lower.Fd())); err != nil {
			return err
		}
		defer w.lower.Close()
	}
	if err := w.run(); errors.Is(err, ErrUnclear) {
		return err
	} else if err != nil {
		return fmt.Errorf("%.300q: %w", w.path, err)
	}
	return nil
}

func (w *walker) run() error {
	var root entry
	if err := w.enter(&root, w.lower != nil); err != nil {
		return err
	}
	for {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		l := w.here()
		w.path = w.path[:l.path]
		if len(l.names) > 0 {
			n := l.names[0]
			l.names = l.names[1:]
			if err := w.step(n); err != nil {
				return err
			}
			continue
		}
		if err := w.leave(); err != nil || len(w.levels) == 0 {
			return err
		}
	}
}

func (w *walker) here() *level { return &w.levels[len(w.levels)-1] }

// step visits a name.
func (w *walker) step(n name) error {
	if len(w.path) > 0 {
		w.path = append(w.path, '/')
	}
	if w.path = append(w.path, n.name...); len(w.path) > pathMax {
		return fmt.Errorf("path of more than %d bytes: %w", pathMax, errdefs.ErrFailedPrecondition)
	}
	l, e := w.here(), entry{name: n.name}
	var upper, lower unix.Stat_t
	if n.upper {
		if err := unix.Fstatat(w.upper.Dir(), n.name, &upper, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return vanished(err)
		}
		if w.trees.Overlay == "" || !isWhiteout(&upper) {
			e.upper = &upper
		}
	}
	if l.both {
		switch err := unix.Fstatat(w.lower.Dir(), n.name, &lower, unix.AT_SYMLINK_NOFOLLOW); {
		case err == nil:
			e.lower = &lower
		case !errors.Is(err, unix.ENOENT) || n.lower:
			return vanished(err)
		}
	}
	if e.upper != nil && is(e.upper, unix.S_IFSOCK) {
		if e.lower != nil && is(e.lower, unix.S_IFSOCK) {
			return nil
		}
		e.upper = nil
	}
	if e.upper == nil || !is(e.upper, unix.S_IFDIR) {
		return w.visitor.file(w, &e)
	}
	if err := w.upper.Down(n.name); err != nil {
		return vanished(err)
	}
	both := e.lower != nil && is(e.lower, unix.S_IFDIR)
	if both {
		if err := w.lower.Down(n.name); err != nil {
			return vanished(err)
		}
	}
	return w.enter(&e, both)
}

func isWhiteout(st *unix.Stat_t) bool { return is(st, unix.S_IFCHR) && st.Rdev == 0 }

// enter begins with the directory that the cursors are in.
func (w *walker) enter(e *entry, both bool) error {
	l := level{both: both, path: len(w.path)}
	if err := unix.Fstat(w.upper.Dir(), &l.stat); err != nil {
		return err
	}
	if e.upper != nil && identify(e.upper) != identify(&l.stat) {
		return errChanged
	}
	if both {
		if err := unix.Fstat(w.lower.Dir(), &l.below); err != nil {
			return err
		}
	}
	if w.trees.Overlay != "" {
		opaque, err := w.opaque()
		if err != nil {
			return err
		}
		l.opaque = opaque || len(w.levels) > 0 && w.here().opaque
	}
	var err error
	if l.names, err = w.names(&l); err != nil {
		return err
	}
	w.levels = append(w.levels, l)
	e.upper, e.lower = &l.stat, nil
	if both {
		e.lower = &l.below
	}
	return w.visitor.dir(w, e)
}

// leave ends with a directory, and finds out whether it stood still.
func (w *walker) leave() error {
	l := w.here()
	if err := unchanged(w.upper.Dir(), &l.stat); err != nil {
		return err
	}
	if l.both {
		if err := unchanged(w.lower.Dir(), &l.below); err != nil {
			return err
		}
	}
	both := l.both
	w.budget.Give(l.took)
	w.levels = w.levels[:len(w.levels)-1]
	if len(w.levels) == 0 {
		return nil
	}
	if both {
		if err := w.lower.Up(); err != nil {
			return vanished(err)
		}
	}
	return vanished(w.upper.Up())
}

// names returns what is to be looked at in the directory, in order. In an upper
// directory, only that has changed which is there, or is hidden as a whole.
func (w *walker) names(l *level) ([]name, error) {
	upper, err := tree.Names(w.upper.Dir(), w.budget)
	if err != nil {
		return nil, err
	}
	var lower []string
	if l.both && (w.trees.Overlay == "" || l.opaque) {
		if lower, err = tree.Names(w.lower.Dir(), w.budget); err != nil {
			return nil, err
		}
	}
	l.took = tree.SizeOfAll(upper) + tree.SizeOfAll(lower)
	slices.Sort(upper)
	slices.Sort(lower)
	all := make([]name, 0, max(len(upper), len(lower)))
	for len(upper) > 0 || len(lower) > 0 {
		switch {
		case len(lower) == 0 || len(upper) > 0 && upper[0] < lower[0]:
			all = append(all, name{upper[0], false, true})
			upper = upper[1:]
		case len(upper) == 0 || lower[0] < upper[0]:
			all = append(all, name{lower[0], true, false})
			lower = lower[1:]
		default:
			all = append(all, name{lower[0], true, true})
			upper, lower = upper[1:], lower[1:]
		}
	}
	return all, nil
}

// opaque reads the marks of an overlay on the directory.
func (w *walker) opaque() (bool, error) {
	redirected, err := attribute(w.upper.Dir(), w.trees.Overlay+"redirect")
	if err != nil {
		return false, err
	}
	mark, err := attribute(w.upper.Dir(), w.trees.Overlay+"opaque")
	if err != nil {
		return false, err
	}
	if redirected != nil || mark != nil && string(mark) != "y" {
		// It has the contents of another directory, or whiteouts in a form that
		// no kernel makes by itself.
		return false, ErrUnclear
	}
	return mark != nil, nil
}
