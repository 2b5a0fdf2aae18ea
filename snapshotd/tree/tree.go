// Package tree works on directory trees whose contents nobody trusts: names,
// links and depths chosen by whoever made a layer or ran in a container.
//
// Everything is done relative to a descriptor of the tree's root, never by
// path from the root of the file system, so that no link leads out. Directories
// are descriptors: the caller of a function that returns one closes it.
package tree

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// inside keeps a resolution in the tree: links are followed as if the
	// root were "/", and nothing mounted on the tree is entered.
	inside = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

	// pathMax is the longest path that the kernel takes, in bytes, and
	// linksMax the most links that one resolution follows.
	pathMax  = 4095
	linksMax = 40

	// triesMax is how often a step is taken again when somebody else changes
	// the tree at the same moment.
	triesMax = 16
)

// Open opens the directory that path names in root, following links inside
// root.
func Open(root int, path string) (int, error) {
	return openat2(root, orDot(path), unix.O_PATH|unix.O_DIRECTORY, inside)
}

// OpenPlain opens the directory that path names in root: ELOOP if there is a
// link on the way.
func OpenPlain(root int, path string) (int, error) {
	return openat2(root, orDot(path), unix.O_PATH|unix.O_DIRECTORY, inside|unix.RESOLVE_NO_SYMLINKS)
}

// OpenChild opens the directory called name in dir for reading; a link is
// ELOOP or ENOTDIR.
func OpenChild(dir int, name string) (int, error) {
	return openat2(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW,
		unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
}

// Reopen opens a directory that is open for paths only for reading.
func Reopen(dir int) (int, error) {
	return openat2(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// MakeDirs is Open that makes what is missing: directories on the way, and
// where a link dangles, the directories that it points to inside root. made is
// told of each new one.
func MakeDirs(root int, path string, made func(dir int, name string) error) (int, error) {
	w := walker{root: root, todo: strings.Split(path, "/"), made: made}
	for tries := 0; len(w.todo) > 0; {
		again, err := w.step()
		if err != nil {
			return -1, err
		}
		if !again {
			tries = 0
		} else if tries++; tries > triesMax {
			return -1, unix.EAGAIN
		}
	}
	return OpenPlain(root, w.at)
}

// A walker resolves a path one component at a time. at has no links in it.
type walker struct {
	root  int
	at    string
	todo  []string
	links int
	made  func(dir int, name string) error
}

// step resolves the next component. It asks to be called again with the same
// one when somebody else made or removed it meanwhile.
func (w *walker) step() (again bool, err error) {
	name := w.todo[0]
	switch name {
	case "", ".":
		w.todo = w.todo[1:]
		return false, nil
	case "..":
		w.at = parent(w.at)
		w.todo = w.todo[1:]
		return false, nil
	}
	next := join(w.at, name)
	if len(next) > pathMax {
		return false, unix.ENAMETOOLONG
	}
	fd, err := openat2(w.root, next, unix.O_PATH|unix.O_NOFOLLOW, inside|unix.RESOLVE_NO_SYMLINKS)
	if errors.Is(err, unix.ENOENT) {
		return true, w.mkdir(name)
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		w.at, w.todo = next, w.todo[1:]
		return false, nil
	case unix.S_IFLNK:
		return false, w.follow(fd)
	}
	return false, unix.ENOTDIR
}

func (w *walker) mkdir(name string) error {
	dir, err := OpenPlain(w.root, w.at)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := unix.Mkdirat(dir, name, 0o755); errors.Is(err, unix.EEXIST) {
		return nil
	} else if err != nil {
		return err
	}
	return w.made(dir, name)
}

func (w *walker) follow(link int) error {
	if w.links++; w.links > linksMax {
		return unix.ELOOP
	}
	var b [pathMax + 1]byte
	n, err := unix.Readlinkat(link, "", b[:])
	if err != nil {
		return err
	}
	target := string(b[:n])
	if strings.HasPrefix(target, "/") {
		w.at = ""
	}
	w.todo = append(strings.Split(target, "/"), w.todo[1:]...)
	return nil
}

func parent(path string) string {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)]
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func orDot(path string) string {
	if path == "" {
		return "."
	}
	return path
}

// openat2 opens close-on-exec, and again where a rename elsewhere made the
// kernel unsure of the answer.
func openat2(dir int, path string, flags, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve}
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(dir, path, &how)
		if tries < triesMax && (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)) {
			continue
		}
		return fd, err
	}
}
