package layer

import (
	"errors"
	"hash/maphash"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/tree"
)

// dirsMax is how many directories are kept open. Archives go through a tree
// depth first, so that a few are enough.
const dirsMax = 32

// A dirCache keeps directories open by the name that entries call them by. It
// is emptied whenever something is removed, which is what can make a name mean
// another directory.
type dirCache struct {
	root     int
	implicit func(dir int, name string) error
	opened   map[string]*directory
	order    []string // oldest first
}

// A directory is one that entries go into.
type directory struct {
	fd   int
	real string // its path in the tree, without links; known after [dirCache.real]
	know bool
}

func (c *dirCache) open(root int, implicit func(int, string) error) {
	c.root, c.implicit = root, implicit
	c.opened = make(map[string]*directory, dirsMax)
}

// get returns the directory that path names, and makes what is missing. It is
// open until the next call of get, find or forget.
func (c *dirCache) get(path string) (*directory, error) {
	d, err := c.find(path)
	if errors.Is(err, unix.ENOENT) {
		fd, err := tree.MakeDirs(c.root, path, c.implicit)
		if err != nil {
			return nil, err
		}
		return c.keep(path, fd), nil
	}
	return d, err
}

// find is get that makes nothing: ENOENT if the directory is missing.
func (c *dirCache) find(path string) (*directory, error) {
	if d, ok := c.opened[path]; ok {
		return d, nil
	}
	fd, err := tree.Open(c.root, path)
	if err != nil {
		return nil, err
	}
	return c.keep(path, fd), nil
}

func (c *dirCache) keep(path string, fd int) *directory {
	if len(c.order) >= dirsMax {
		unix.Close(c.opened[c.order[0]].fd)
		delete(c.opened, c.order[0])
		c.order = append(c.order[:0], c.order[1:]...)
	}
	d := &directory{fd: fd}
	c.opened[path] = d
	c.order = append(c.order, path)
	return d
}

// forget closes every directory.
func (c *dirCache) forget() {
	for _, d := range c.opened {
		unix.Close(d.fd)
	}
	clear(c.opened)
	c.order = c.order[:0]
}

func (c *dirCache) close() { c.forget() }

// path returns d's path in the tree without links.
func (c *dirCache) path(d *directory) (string, error) {
	if d.know {
		return d.real, nil
	}
	root, err := fdPath(c.root)
	if err != nil {
		return "", err
	}
	here, err := fdPath(d.fd)
	if err != nil {
		return "", err
	}
	rel, ok := strings.CutPrefix(here, strings.TrimSuffix(root, "/"))
	if !ok || rel != "" && rel[0] != '/' {
		return "", unix.EXDEV
	}
	d.real, d.know = strings.TrimPrefix(rel, "/"), true
	return d.real, nil
}

// fdPath asks the kernel for the path of an open file, from the root of its
// mount if that is mounted nowhere.
func fdPath(fd int) (string, error) {
	var b [pathMax + 1]byte
	n, err := unix.Readlink("/proc/self/fd/"+strconv.Itoa(fd), b[:])
	if err != nil {
		return "", err
	}
	if n == len(b) {
		return "", unix.ENAMETOOLONG
	}
	return string(b[:n]), nil
}

// made remembers what this layer has an entry for, by path, where something
// else was there before. Eight bytes each: two paths of one hash are taken for
// one, which a layer cannot bring about, as it does not know the seed.
type made struct {
	off  bool // nothing was there before
	seed maphash.Seed
	set  map[uint64]struct{}
}

func (m *made) add(path string) {
	if m.off {
		return
	}
	if m.set == nil {
		m.seed, m.set = maphash.MakeSeed(), make(map[uint64]struct{})
	}
	m.set[maphash.String(m.seed, path)] = struct{}{}
}

func (m *made) has(path string) bool {
	if m.set == nil {
		return false
	}
	_, ok := m.set[maphash.String(m.seed, path)]
	return ok
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
