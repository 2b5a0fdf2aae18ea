package tree

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// An Entry is something in a tree, as [Walk] meets it.
type Entry struct {
	Dir  int    // the directory that it is in
	Name string // its name there
	Stat unix.Stat_t

	path *path
}

// Path returns the entry's path from the root.
func (e *Entry) Path() string {
	var b strings.Builder
	for _, l := range e.path.levels[1:] {
		b.WriteString(l.name)
		b.WriteByte('/')
	}
	b.WriteString(e.Name)
	return b.String()
}

// Is tells whether the entry is of a type, such as [unix.S_IFDIR].
func (e *Entry) Is(kind uint32) bool { return e.Stat.Mode&unix.S_IFMT == kind }

// Walk calls visit for everything below root, each directory before what is in
// it. It follows no link and enters nothing that is mounted there. visit may
// remove what it is called for.
func Walk(ctx context.Context, root int, visit func(e *Entry) error) error {
	var p path
	defer p.close()
	if err := p.down(root, "."); err != nil {
		return err
	}
	if err := p.visit(ctx, visit); err != nil {
		return err
	}
	for {
		l := p.here()
		if len(l.subs) == 0 && l.more {
			if err := l.collect(); err != nil {
				return err
			}
			continue
		}
		if len(l.subs) == 0 {
			if len(p.levels) == 1 {
				return nil
			}
			if _, err := p.up(); err != nil {
				return err
			}
			continue
		}
		next := l.subs[len(l.subs)-1]
		l.subs = l.subs[:len(l.subs)-1]
		switch err := p.down(l.fd, next); {
		case gone(err), errors.Is(err, unix.EXDEV):
			continue
		case err != nil:
			return err
		}
		if err := p.visit(ctx, visit); err != nil {
			return err
		}
	}
}

// visit calls fn for what is in the directory and notes the directories.
func (p *path) visit(ctx context.Context, fn func(e *Entry) error) error {
	scan := newScanner(p.here().fd)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		l := p.here()
		name, isDir, err := scan.next()
		if name == "" || err != nil {
			return err
		}
		e := Entry{Dir: l.fd, Name: name, path: p}
		switch err := unix.Fstatat(l.fd, name, &e.Stat, unix.AT_SYMLINK_NOFOLLOW); {
		case gone(err):
			continue
		case err != nil:
			return err
		}
		if err := fn(&e); err != nil {
			return err
		}
		if isDir {
			l.sub(name, scan)
		}
	}
}

// subsMax is how many directories are remembered that are in one. What is more is
// looked for again: how many there are, whoever filled the tree decided.
const subsMax = 1024

// sub notes a directory to be visited, or where in this one to look for it.
func (l *level) sub(name string, scan *scanner) {
	if l.more {
		return
	}
	l.subs = append(l.subs, name)
	l.at, l.more = scan.at, len(l.subs) == subsMax
}

// collect notes the next directories to be visited.
func (l *level) collect() error {
	if _, err := unix.Seek(l.fd, l.at, unix.SEEK_SET); err != nil {
		return err
	}
	l.subs, l.more = l.subs[:0], false
	for scan := newScanner(l.fd); !l.more; {
		name, isDir, err := scan.next()
		if name == "" || err != nil {
			return err
		}
		if isDir {
			l.sub(name, scan)
		}
	}
	return nil
}

func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// A Usage is what a tree occupies.
type Usage struct {
	Inodes int64
	Size   int64 // bytes of disk
}

// Measure returns what the tree occupies, the root included. Of a file with n
// names, each is an nth of it: no table of such files is kept, which would be as
// long as whoever filled the tree likes.
func Measure(ctx context.Context, root int) (Usage, error) {
	shares := make(map[uint64]Usage) // of names, by how many their files have
	count := func(st *unix.Stat_t) {
		n := uint64(1)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			n = max(n, uint64(st.Nlink)) //nolint:unconvert // 32 bits elsewhere
		}
		s := shares[n]
		s.Inodes++
		s.Size += st.Blocks
		shares[n] = s
	}
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return Usage{}, err
	}
	count(&st)
	err := Walk(ctx, root, func(e *Entry) error {
		count(&e.Stat)
		return nil
	})
	var u Usage
	for n, s := range shares {
		// Up, where some of the names are not in the tree.
		u.Inodes += up(s.Inodes, n)
		u.Size += up(s.Size, n) * 512
	}
	return u, err
}

// up divides, and rounds up.
func up(sum int64, n uint64) int64 {
	return int64((uint64(sum) + n - 1) / n) //nolint:gosec // counts
}
