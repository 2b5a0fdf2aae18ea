// Package changes finds out how one tree differs from another, exactly: what a
// layer has to say so that it turns the one into the other, with the types,
// contents, modes, owners, times, extended attributes and hard links of all that
// is in it.
//
// Both trees belong to somebody whom nobody trusts. They are read relative to
// descriptors of their roots; no link is followed, nothing but regular files and
// directories is opened, and what changes while it is read is an error and not a
// wrong layer.
//
// # Two ways
//
// Any two trees can be compared, by walking both. Where one is an overlay whose
// layers below are the other, its upper directory has all that differs, and only
// that is walked. Both ways find the same. What the upper directory alone cannot
// tell is [ErrUnclear], before anything was found.
//
// # What a layer cannot say
//
// Sockets are as if they were not there. Extended attributes are those that a
// layer may set ([layer.Allowed]), of files and directories. The root has no
// time: it is a change only if its mode, owner or attributes are. Names that mean
// something else in a layer, and devices that mean something else in an overlay,
// are [errdefs.ErrFailedPrecondition].
//
// # Hard links
//
// The names of one file are a group. A group is told whole, or not at all if the
// names were one file before, alone, and are the same. So whatever a link refers
// to is in the layer itself, and comes before it.
package changes

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/tree"
)

// Trees are what is compared.
type Trees struct {
	Lower *os.File // nothing, if it is nil
	Upper *os.File

	// Overlay, if it is not empty, says that Upper is only the upper directory
	// of an overlay on Lower, and is the prefix of the attributes that overlayfs
	// keeps there ("trusted.overlay.").
	Overlay string

	read func(n int64) error // is told of bytes that were compared; nil is nobody
}

// A Change is something in the upper tree that is not so in the lower one, or
// not in it any more. It is good until the call that it is given to returns.
type Change struct {
	Path    string // from the root, which is ""
	Deleted bool   // there is nothing any more, and nothing else is said

	Stat       unix.Stat_t
	Link       string      // the path of an earlier change that is the same file
	Target     string      // of a symbolic link
	Attributes []Attribute // by name
	File       *os.File    // the contents of a regular file that is not a link
}

// Is tells whether the change is to something of a type, such as
// [unix.S_IFDIR].
func (c *Change) Is(kind uint32) bool { return !c.Deleted && is(&c.Stat, kind) }

// An Attribute is an extended attribute.
type Attribute struct{ Name, Value string }

// ErrUnclear says that an upper directory does not tell by itself how the tree
// differs.
var ErrUnclear = errors.New("the upper directory does not tell the difference")

// errChanged says that the trees did not stand still.
var errChanged = fmt.Errorf("changed while it was read: %w", errdefs.ErrAborted)

// memoryMax is how much memory a walk takes for the names in the directories on the
// way, and for files with several names, in bytes: some three millions of either.
const memoryMax = 256 << 20

// Walk calls visit for every change, by path, a directory before what is in it.
// A directory that did not change is told if something in it did. A tree that
// changes meanwhile is [errdefs.ErrAborted], and one of which too much would have
// to be remembered at once [errdefs.ErrResourceExhausted].
func Walk(ctx context.Context, t Trees, visit func(c *Change) error) error {
	return walkWithin(ctx, t, tree.NewBudget(memoryMax), visit)
}

func walkWithin(ctx context.Context, t Trees, b *tree.Budget, visit func(c *Change) error) error {
	s := newSurvey(t.Overlay != "", b)
	if t.Lower != nil {
		if err := walk(ctx, t, b, s); err != nil {
			return err
		}
		if err := s.decide(); err != nil {
			return err
		}
	}
	return walk(ctx, t, b, &teller{survey: s, alone: t.Lower == nil, visit: visit})
}

func is(st *unix.Stat_t, kind uint32) bool { return st.Mode&unix.S_IFMT == kind }

// An identity tells one file from another.
type identity struct{ dev, ino uint64 }

func identify(st *unix.Stat_t) identity {
	return identity{uint64(st.Dev), st.Ino} //nolint:unconvert // 32 bits elsewhere
}

// unchanged is errChanged if the file is not what st says any more. The change
// time of a directory does not count: overlayfs changes marks of its own.
func unchanged(fd int, st *unix.Stat_t) error {
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil {
		return err
	}
	if identify(&now) != identify(st) || !sameLooks(&now, st) || now.Size != st.Size ||
		now.Ctim != st.Ctim && !is(st, unix.S_IFDIR) {
		return errChanged
	}
	return nil
}

// vanished makes the errors of what is not there any more one.
func vanished(err error) error {
	for _, e := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ESTALE} {
		if errors.Is(err, e) {
			return errChanged
		}
	}
	return err
}
