package tree

import (
	"strings"

	"golang.org/x/sys/unix"
)

// openMax is how many directories of a path are kept open at most. A tree may
// be deeper than a process may have files; what is deeper is found again
// through "..".
const openMax = 64

// An identity tells one directory from another that took its place.
type identity struct{ dev, ino uint64 }

func identify(fd int) (identity, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return identity{uint64(st.Dev), st.Ino}, err //nolint:unconvert // 32 bits elsewhere
}

// A level is a directory on the way down.
type level struct {
	fd   int // -1 once it was closed to save descriptors
	id   identity
	name string   // of the directory in the one above
	subs []string // yet to be visited; for [Walk] and [WalkOrdered] only
	more bool     // there may be others, from at on; for [Walk] only
	took int64    // of a budget
	scan *scanner // not for [Walk]
	at   int64    // how far it was scanned

	st unix.Stat_t // before it was scanned; for [Copy] only
}

// A path is the way down from a root. It goes up again by "..", and only to the
// directory that it came from.
type path struct {
	levels []level
}

// down enters the directory called name.
func (p *path) down(dir int, name string) error {
	fd, err := OpenChild(dir, name)
	if err != nil {
		return err
	}
	id, err := identify(fd)
	if err != nil {
		unix.Close(fd)
		return err
	}
	if n := len(p.levels); n > openMax {
		unix.Close(p.levels[n-1].fd)
		p.levels[n-1].fd = -1
		p.levels[n-1].scan = nil
	}
	p.levels = append(p.levels, level{fd: fd, id: id, name: name})
	return nil
}

// String is the path from the root.
func (p *path) String() string {
	var b strings.Builder
	for i, l := range p.levels {
		if i > 1 {
			b.WriteByte('/')
		}
		if i > 0 {
			b.WriteString(l.name)
		}
	}
	return b.String()
}

func (p *path) here() *level { return &p.levels[len(p.levels)-1] }

// next returns the next name in the directory. One that was closed meanwhile is
// read on from where it was.
func (p *path) next() (name string, isDir bool, err error) {
	l := p.here()
	if l.scan == nil {
		if _, err := unix.Seek(l.fd, l.at, unix.SEEK_SET); err != nil {
			return "", false, err
		}
		l.scan = newScanner(l.fd)
	}
	name, isDir, err = l.scan.next()
	l.at = l.scan.at
	return name, isDir, err
}

// up leaves the directory, which must not be the first.
func (p *path) up() (left string, err error) {
	child := p.here()
	above := &p.levels[len(p.levels)-2]
	if above.fd < 0 {
		fd, err := openat2(child.fd, "..", unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_NO_XDEV)
		if err != nil {
			return "", err
		}
		id, err := identify(fd)
		if err == nil && id != above.id {
			err = unix.ESTALE // somebody moved it
		}
		if err != nil {
			unix.Close(fd)
			return "", err
		}
		above.fd = fd
	}
	left = child.name
	unix.Close(child.fd)
	p.levels = p.levels[:len(p.levels)-1]
	return left, nil
}

func (p *path) close() {
	for _, l := range p.levels {
		if l.fd >= 0 {
			unix.Close(l.fd)
		}
	}
}
