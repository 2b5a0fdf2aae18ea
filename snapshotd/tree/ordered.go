package tree

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// An Ordered visitor is told of a tree in the order of its names.
type Ordered interface {
	// Enter begins the directory called name, which is open as dir; the root,
	// called ".", is the first. names are what is in it, in order.
	Enter(name string, dir int, names []string) error

	// Visit is for what is no directory.
	Visit(e *Entry) error

	// Leave ends a directory, when all in it was visited.
	Leave() error
}

// WalkOrdered shows a tree to v, each directory before what is in it. It
// follows no link. Something mounted in the tree is an error, and what goes
// away meanwhile is left out. The names in the directories on the way are taken
// from the budget.
func WalkOrdered(ctx context.Context, root int, b *Budget, v Ordered) error {
	var p path
	defer p.close()
	if err := p.down(root, "."); err != nil {
		return err
	}
	if err := p.enter(v, b); err != nil {
		return err
	}
	for {
		l := p.here()
		if len(l.subs) == 0 {
			if err := v.Leave(); err != nil {
				return err
			}
			b.Give(l.took)
			if len(p.levels) == 1 {
				return nil
			}
			if _, err := p.up(); err != nil {
				return err
			}
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		e := Entry{Dir: l.fd, Name: l.subs[0], path: &p}
		l.subs = l.subs[1:]
		if err := p.step(&e, v, b); err != nil {
			return fmt.Errorf("%.300q: %w", e.Name, err)
		}
	}
}

// step visits an entry, or begins with the directory that it is.
func (p *path) step(e *Entry, v Ordered, b *Budget) error {
	err := unix.Fstatat(e.Dir, e.Name, &e.Stat, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil && !e.Is(unix.S_IFDIR):
		err = v.Visit(e)
	case err == nil:
		if err = p.down(e.Dir, e.Name); err == nil {
			return p.enter(v, b)
		}
	}
	if gone(err) {
		return nil
	}
	return err
}

// enter begins the directory that was gone down to.
func (p *path) enter(v Ordered, b *Budget) error {
	l := p.here()
	names, err := Names(l.fd, b)
	if err != nil {
		return err
	}
	slices.Sort(names)
	l.subs, l.took = names, SizeOfAll(names)
	return v.Enter(l.name, l.fd, names)
}
