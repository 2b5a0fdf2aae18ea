package changes

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/layer"
	"github.com/gantryd/gantry/snapshotd/tree"
)

const (
	compareSize = 128 << 10 // bytes that are compared at once
	attrsMax    = 64 << 10  // the kernel's limit, of a list of names and of a value
)

// sameLooks compares what a stat tells beside the contents.
func sameLooks(a, b *unix.Stat_t) bool {
	return a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid && a.Mtim == b.Mtim
}

// same tells whether the file is in both trees, the same in every respect but
// its links.
func (w *walker) same(e *entry) (bool, error) {
	l, u := e.lower, e.upper
	switch {
	case l == nil || u == nil || !sameLooks(l, u):
		return false, nil
	case identify(l) == identify(u):
		return true, nil
	}
	switch u.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if l.Size != u.Size {
			return false, nil
		}
		return w.sameContents(e)
	case unix.S_IFLNK:
		a, err := readlink(w.lower.Dir(), e.name)
		if err != nil {
			return false, err
		}
		b, err := readlink(w.upper.Dir(), e.name)
		return a == b, err
	case unix.S_IFCHR, unix.S_IFBLK:
		return l.Rdev == u.Rdev, nil
	}
	return true, nil
}

func readlink(dir int, name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, b)
	if errors.Is(err, unix.EINVAL) {
		return "", errChanged // it is no link any more
	}
	if err != nil {
		return "", vanished(err)
	}
	return string(b[:n]), nil
}

// sameContents compares two regular files of the same size.
func (w *walker) sameContents(e *entry) (bool, error) {
	lower, err := openFile(w.lower.Dir(), e.name, e.lower)
	if err != nil {
		return false, err
	}
	defer lower.Close()
	upper, err := openFile(w.upper.Dir(), e.name, e.upper)
	if err != nil {
		return false, err
	}
	defer upper.Close()
	if same, err := sameAttributes(int(lower.Fd()), int(upper.Fd())); err != nil || !same {
		return false, err
	}
	if same, err := w.sameBytes(lower, upper, e.upper.Size); err != nil || !same {
		return false, err
	}
	if err := unchanged(int(lower.Fd()), e.lower); err != nil {
		return false, err
	}
	return true, unchanged(int(upper.Fd()), e.upper)
}

// openFile opens a regular file that is as st says.
func openFile(dir int, name string, st *unix.Stat_t) (*os.File, error) {
	f, err := tree.OpenFile(dir, name)
	if err != nil {
		return nil, vanished(err)
	}
	if err := unchanged(int(f.Fd()), st); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (w *walker) sameBytes(a, b *os.File, size int64) (bool, error) {
	if w.bufs[0] == nil {
		w.bufs = [2][]byte{make([]byte, compareSize), make([]byte, compareSize)}
	}
	for at := int64(0); at < size; at += compareSize {
		if err := w.ctx.Err(); err != nil {
			return false, err
		}
		n := min(size-at, compareSize)
		for i, f := range []*os.File{a, b} {
			if _, err := f.ReadAt(w.bufs[i][:n], at); errors.Is(err, io.EOF) {
				return false, errChanged
			} else if err != nil {
				return false, err
			}
		}
		if !bytes.Equal(w.bufs[0][:n], w.bufs[1][:n]) {
			return false, nil
		}
		if w.trees.read != nil {
			if err := w.trees.read(2 * n); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

func sameAttributes(a, b int) (bool, error) {
	of, err := attributes(a)
	if err != nil {
		return false, err
	}
	and, err := attributes(b)
	return slices.Equal(of, and), err
}

// attributes returns those that a layer may set.
func attributes(fd int) ([]Attribute, error) {
	n, err := unix.Flistxattr(fd, nil)
	if n == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list := make([]byte, attrsMax)
	if n, err = unix.Flistxattr(fd, list); err != nil {
		return nil, err
	}
	var all []Attribute
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if !layer.Allowed(name) {
			continue
		}
		value, err := attribute(fd, name)
		if err != nil {
			return nil, err
		}
		if value == nil {
			return nil, errChanged
		}
		all = append(all, Attribute{name, string(value)})
	}
	slices.SortFunc(all, func(a, b Attribute) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// attribute returns a value that is not nil, if there is one.
func attribute(fd int, name string) ([]byte, error) {
	value := make([]byte, 256)
	for {
		n, err := unix.Fgetxattr(fd, name, value)
		switch {
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
			return nil, nil
		case errors.Is(err, unix.ERANGE) && len(value) < attrsMax:
			value = make([]byte, attrsMax)
		case err != nil:
			return nil, fmt.Errorf("attribute %.100q: %w", name, err)
		default:
			return value[:n:n], nil
		}
	}
}

// hasAttribute is for what is not to be opened.
func hasAttribute(dir int, name, attr string) (bool, error) {
	_, err := unix.Lgetxattr("/proc/self/fd/"+strconv.Itoa(dir)+"/"+name, attr, nil)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	return err == nil, vanished(err)
}
