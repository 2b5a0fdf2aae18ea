package changes

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/tree"
)

// whiteoutPrefix is how names begin that mean something else in a layer.
const whiteoutPrefix = ".wh."

// rootMode is what the root of a new snapshot has.
const rootMode = unix.S_IFDIR | 0o755

// A teller is the second walk. It tells of the changes.
type teller struct {
	survey *survey
	alone  bool // there is no lower tree, and was no survey
	visit  func(c *Change) error
}

// dir tells of a directory, if it has changed itself.
func (t *teller) dir(w *walker, e *entry) error {
	if len(w.levels) == 1 {
		return t.root(w, e)
	}
	if e.lower != nil && sameLooks(e.lower, e.upper) {
		if same, err := sameAttributes(w.lower.Dir(), w.upper.Dir()); err != nil || same {
			return err
		}
	}
	if err := t.parents(w, len(w.levels)-1); err != nil {
		return err
	}
	return t.directory(w, w.here(), w.upper.Dir())
}

func (t *teller) root(w *walker, e *entry) error {
	before := unix.Stat_t{Mode: rootMode}
	if e.lower != nil {
		before = *e.lower
	}
	before.Mtim = e.upper.Mtim
	if sameLooks(&before, e.upper) {
		var below []Attribute
		own, err := attributes(w.upper.Dir())
		if err == nil && e.lower != nil {
			below, err = attributes(w.lower.Dir())
		}
		if err != nil || slices.Equal(own, below) {
			return err
		}
	}
	return t.directory(w, w.here(), w.upper.Dir())
}

func (t *teller) directory(w *walker, l *level, fd int) error {
	l.told = true
	attrs, err := attributes(fd)
	if err != nil {
		return err
	}
	return t.tell(&Change{Path: string(w.path[:l.path]), Stat: l.stat, Attributes: attrs})
}

// parents tells of the first n directories on the way, where that was not done:
// whoever applies the layer alone is to know what they look like.
func (t *teller) parents(w *walker, n int) error {
	for i := 1; i < n; i++ { // the root is not one
		l := &w.levels[i]
		if l.told {
			continue
		}
		fd, err := tree.OpenPlain(int(w.trees.Upper.Fd()), string(w.path[:l.path]))
		if err != nil {
			return vanished(err)
		}
		err = t.parent(w, l, fd)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *teller) parent(w *walker, l *level, path int) error {
	fd, err := tree.Reopen(path)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unchanged(fd, &l.stat); err != nil {
		return err
	}
	return t.directory(w, l, fd)
}

// file tells of anything but a directory, if it has changed.
func (t *teller) file(w *walker, e *entry) error {
	c := Change{Path: string(w.path)}
	if e.upper == nil {
		if e.lower == nil {
			return nil // a whiteout of nothing
		}
		c.Deleted = true
		return t.below(w, &c)
	}
	c.Stat = *e.upper
	switch g, err := t.group(e); {
	case err != nil:
		return err
	case g != nil && !g.told:
		return nil
	case g != nil && g.first != "":
		c.Link = g.first
	case g != nil:
		if err := t.survey.budget.Take(int64(len(c.Path))); err != nil {
			return err
		}
		g.first = c.Path
	default:
		if same, err := w.same(e); err != nil || same {
			return err
		}
	}
	if err := t.parents(w, len(w.levels)); err != nil {
		return err
	}
	return t.contents(w, e, &c)
}

// group returns the group of a file that has several names.
func (t *teller) group(e *entry) (*group, error) {
	if !linked(e) {
		return nil, nil
	}
	g := t.survey.groups[identify(e.upper)]
	switch {
	case g != nil:
		return g, nil
	case !t.alone:
		return nil, errChanged
	}
	g = &group{told: true}
	return g, t.survey.add(identify(e.upper), g)
}

// below tells of a change after the directories that it is in.
func (t *teller) below(w *walker, c *Change) error {
	if err := t.parents(w, len(w.levels)); err != nil {
		return err
	}
	return t.tell(c)
}

// contents reads what the file has, and tells.
func (t *teller) contents(w *walker, e *entry, c *Change) (err error) {
	switch e.upper.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		c.Target, err = readlink(w.upper.Dir(), e.name)
	case unix.S_IFREG:
		return t.regular(w, e, c)
	case unix.S_IFCHR:
		if isWhiteout(e.upper) {
			err = fmt.Errorf("device 0:0 is how overlayfs spells a whiteout: %w", errdefs.ErrFailedPrecondition)
		}
	}
	if err != nil {
		return err
	}
	return t.tell(c)
}

func (t *teller) regular(w *walker, e *entry, c *Change) error {
	f, err := openFile(w.upper.Dir(), e.name, e.upper)
	if err != nil {
		return err
	}
	defer f.Close()
	if c.Attributes, err = attributes(int(f.Fd())); err != nil {
		return err
	}
	if c.Link == "" {
		c.File = f
	}
	if err := t.tell(c); err != nil {
		return err
	}
	return unchanged(int(f.Fd()), e.upper)
}

func (t *teller) tell(c *Change) error {
	name := c.Path[strings.LastIndexByte(c.Path, '/')+1:]
	if strings.HasPrefix(name, whiteoutPrefix) {
		return fmt.Errorf("a layer cannot have the name %.100q: %w", name, errdefs.ErrFailedPrecondition)
	}
	return t.visit(c)
}
