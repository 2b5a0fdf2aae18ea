package changes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/tree"
)

// A Kind is one respect in which two files are not the same.
type Kind string

// What is seen without that a file is opened.
const (
	Missing Kind = "missing"
	Extra   Kind = "extra"
	Type    Kind = "type"
	Mode    Kind = "mode"
	Owner   Kind = "owner"
	Time    Kind = "time" // of what is no directory
	Size    Kind = "size"
	Device  Kind = "device"
	Target  Kind = "target" // of a symbolic link
)

// What is only seen in the file.
const (
	Attributes Kind = "extended attributes"
	Contents   Kind = "contents"
	Unreadable Kind = "unreadable"
)

// A Difference is a path under which two trees have not the same.
type Difference struct {
	Path  string // from the root, which is ""
	Kinds []Kind
}

// Looks tells whether it can be seen without that a file is opened.
func (d Difference) Looks() bool {
	return slices.ContainsFunc(d.Kinds, func(k Kind) bool {
		return k != Attributes && k != Contents && k != Unreadable
	})
}

// A Comparison is of a tree with another, which says how it has to be. Both stand
// still.
type Comparison struct {
	Want, Got *os.File

	// Read is told of bytes that were read; nil is nobody.
	Read func(n int64) error
	// Visit is called by path, a directory before what is in it. What is below
	// a directory that one tree does not have is not told.
	Visit func(d Difference) error
}

// Compare finds where two trees differ, but for the times of directories, and
// sockets, and which files are one. Upper directories of overlays are compared as
// they are, without the marks on directories: the same can be said in several
// ways. What cannot be read in the tree that is looked at is a difference.
func Compare(ctx context.Context, c Comparison) error {
	return walk(ctx, Trees{Lower: c.Want, Upper: c.Got, read: c.Read}, tree.NewBudget(memoryMax), &comparer{c})
}

// A comparer is the visitor of Compare.
type comparer struct{ Comparison }

func (c *comparer) dir(w *walker, e *entry) error {
	if e.lower == nil {
		// It is all new: nothing below it is told.
		w.here().names = nil
		var st unix.Stat_t
		if w.levels[len(w.levels)-2].both && unix.Fstatat(w.lower.Dir(), e.name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			return c.tell(w, []Kind{Type})
		}
		return c.tell(w, []Kind{Extra})
	}
	kinds := looks(e)
	same, err := sameAttributes(w.lower.Dir(), w.upper.Dir())
	if err != nil {
		return err
	}
	if !same {
		kinds = append(kinds, Attributes)
	}
	return c.tell(w, kinds)
}

func (c *comparer) file(w *walker, e *entry) error {
	switch {
	case e.lower == nil && e.upper == nil:
		return nil
	case e.upper == nil && is(e.lower, unix.S_IFSOCK):
		return nil
	case e.upper == nil:
		return c.tell(w, []Kind{Missing})
	case e.lower == nil:
		return c.tell(w, []Kind{Extra})
	}
	kinds := looks(e)
	if slices.Contains(kinds, Type) {
		return c.tell(w, kinds)
	}
	more, err := c.inside(w, e, kinds)
	if err != nil {
		return err
	}
	return c.tell(w, append(kinds, more...))
}

// looks are the differences that stats tell.
func looks(e *entry) (kinds []Kind) {
	l, u := e.lower, e.upper
	if l.Mode&unix.S_IFMT != u.Mode&unix.S_IFMT {
		return []Kind{Type}
	}
	if l.Mode != u.Mode {
		kinds = append(kinds, Mode)
	}
	if l.Uid != u.Uid || l.Gid != u.Gid {
		kinds = append(kinds, Owner)
	}
	if l.Mtim != u.Mtim && !is(u, unix.S_IFDIR) {
		kinds = append(kinds, Time)
	}
	if l.Size != u.Size && is(u, unix.S_IFREG) {
		kinds = append(kinds, Size)
	}
	if device := is(u, unix.S_IFCHR) || is(u, unix.S_IFBLK); device && l.Rdev != u.Rdev {
		kinds = append(kinds, Device)
	}
	return kinds
}

// inside compares what has to be read.
func (c *comparer) inside(w *walker, e *entry, known []Kind) ([]Kind, error) {
	switch e.upper.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		a, err := readlink(w.lower.Dir(), e.name)
		if err != nil {
			return nil, err
		}
		b, err := readlink(w.upper.Dir(), e.name)
		if err != nil || a != b {
			return []Kind{Target}, unreadable(err)
		}
	case unix.S_IFREG:
		return c.insideFile(w, e, known)
	}
	return nil, nil
}

func (c *comparer) insideFile(w *walker, e *entry, known []Kind) (kinds []Kind, err error) {
	want, err := openFile(w.lower.Dir(), e.name, e.lower)
	if err != nil {
		return nil, err
	}
	defer want.Close()
	got, err := openFile(w.upper.Dir(), e.name, e.upper)
	if err != nil {
		return []Kind{Unreadable}, unreadable(err)
	}
	defer got.Close()
	same, err := sameAttributes(int(want.Fd()), int(got.Fd()))
	if err != nil {
		return []Kind{Unreadable}, unreadable(err)
	}
	if !same {
		kinds = append(kinds, Attributes)
	}
	if slices.Contains(known, Size) {
		return kinds, nil
	}
	switch same, err := w.sameBytes(want, got, e.upper.Size); {
	case err != nil:
		return append(kinds, Unreadable), unreadable(err)
	case !same:
		kinds = append(kinds, Contents)
	}
	return kinds, nil
}

// unreadable is nil for an error of the disk: that is what was found.
func unreadable(err error) error {
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EBADMSG) {
		return nil
	}
	return err
}

func (c *comparer) tell(w *walker, kinds []Kind) error {
	if len(kinds) == 0 {
		return nil
	}
	return c.Visit(Difference{Path: string(w.path), Kinds: kinds})
}

// String is the difference in words.
func (d Difference) String() string {
	words := make([]string, len(d.Kinds))
	for i, k := range d.Kinds {
		words[i] = string(k)
	}
	return fmt.Sprintf("%.200q: %s", "/"+d.Path, strings.Join(words, ", "))
}
