package erofs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/tree"
)

// build writes the tree below root, an open directory, into f as an image, as
// long as more than freeMin bytes of disk are free. The same tree gives the same
// bytes. overlay is the prefix of overlayfs' marks.
func build(ctx context.Context, f *os.File, root int, overlay string, freeMin int64) error {
	b := &builder{
		ctx: ctx, space: newSpace(f, freeMin), attrs: newAttrReader(overlay),
		linked: make(map[fileID]*linked), budget: tree.NewBudget(namesMax), buf: make([]byte, copySize),
	}
	if err := tree.WalkOrdered(ctx, root, b.budget, b); err != nil {
		return err
	}
	for _, l := range b.linked {
		// It has names elsewhere too, or lost one meanwhile.
		if err := b.space.put(le.AppendUint32(nil, l.names), l.at+inodeNlinkAt); err != nil {
			return err
		}
	}
	return b.space.finish(b.root, b.inodes)
}

const (
	// namesMax is how much memory a builder may take, in bytes, and linkedSize
	// about how much of it for one file with several names.
	namesMax   = 256 << 20
	linkedSize = 96
)

// A builder makes an image of the tree that it is shown. In memory are the names
// in the directories on the way to where it is, and the files that have names
// which it did not meet yet, as far as the budget goes.
type builder struct {
	ctx    context.Context
	space  *space
	attrs  *attrReader
	linked map[fileID]*linked
	budget *tree.Budget
	way    []*folder
	root   uint16
	inodes uint64
	buf    []byte
}

var _ tree.Ordered = (*builder)(nil)

// A fileID tells files apart.
type fileID struct{ dev, ino uint64 }

// A linked file has several names.
type linked struct {
	at    int64 // of its inode
	names uint32
}

// A folder is a directory that is being filled. Where its inode and its contents
// will be is known before what is in it.
type folder struct {
	at, contentsAt int64
	list           []dirent
	subs           uint32
}

func (f *folder) slot() uint64 { return uint64(f.at / slotSize) }

// Enter implements tree.Ordered.
func (b *builder) Enter(name string, dir int, names []string) error {
	i := inode{stat: new(unix.Stat_t)}
	if err := unix.Fstat(dir, i.stat); err != nil {
		return err
	}
	attrs, err := b.attrs.ofFile(dir)
	if err != nil {
		return err
	}
	all := slices.Concat(names, []string{".", ".."})
	slices.Sort(all)
	i.size = dirSize(all)
	d := &folder{list: make([]dirent, 0, len(all))}
	if d.at, d.contentsAt, err = b.write(&i, attrs, nil); err != nil {
		return err
	}
	if len(b.way) == 0 {
		if d.slot() > math.MaxUint16 {
			return errImage
		}
		b.root = uint16(d.slot())
	} else {
		up := b.way[len(b.way)-1]
		up.list = append(up.list, dirent{name, d.slot(), fileType(unix.S_IFDIR)})
		up.subs++
	}
	b.way = append(b.way, d)
	return nil
}

// Leave implements tree.Ordered.
func (b *builder) Leave() error {
	d := b.way[len(b.way)-1]
	up := d
	if len(b.way) > 1 {
		up = b.way[len(b.way)-2]
	}
	b.way = b.way[:len(b.way)-1]
	dir := fileType(unix.S_IFDIR)
	list := append(d.list, dirent{".", d.slot(), dir}, dirent{"..", up.slot(), dir})
	slices.SortFunc(list, func(x, y dirent) int { return strings.Compare(x.name, y.name) })
	size, err := encodeDir(list, func(block []byte, at int64) error { return b.space.put(block, d.contentsAt+at) })
	if err != nil {
		return err
	}
	if err := b.space.put(le.AppendUint32(nil, 2+d.subs), d.at+inodeNlinkAt); err != nil {
		return err
	}
	// What went away meanwhile is not in it.
	return b.space.put(le.AppendUint64(nil, uint64(size)), d.at+inodeSizeAt)
}

// Visit implements tree.Ordered.
func (b *builder) Visit(e *tree.Entry) error {
	d := b.way[len(b.way)-1]
	l := b.linked[idOf(e)]
	if l == nil {
		f, err := open(e)
		if err != nil {
			return err
		}
		if f != nil {
			defer f.Close()
		}
		// Another file may have come in its place.
		if l = b.linked[idOf(e)]; l == nil {
			at, err := b.file(e, f)
			if err != nil {
				return err
			}
			l = &linked{at: at}
		}
	}
	id := idOf(e)
	l.names++
	if err := b.note(id, l, l.names < uint32(e.Stat.Nlink)); err != nil {
		return err
	}
	d.list = append(d.list, dirent{e.Name, uint64(l.at / slotSize), fileType(e.Stat.Mode)})
	return nil
}

// note keeps a file as long as it has names that were not met.
func (b *builder) note(id fileID, l *linked, more bool) error {
	_, noted := b.linked[id]
	switch {
	case more && !noted:
		b.linked[id] = l
		return b.budget.Take(linkedSize)
	case !more && noted:
		delete(b.linked, id)
		b.budget.Give(linkedSize)
	}
	return nil
}

func idOf(e *tree.Entry) fileID {
	return fileID{uint64(e.Stat.Dev), e.Stat.Ino} //nolint:unconvert // 32 bits elsewhere
}

// open opens a regular file, and makes the entry one of what was opened.
func open(e *tree.Entry) (*os.File, error) {
	if !e.Is(unix.S_IFREG) {
		return nil, nil
	}
	f, err := tree.OpenFile(e.Dir, e.Name)
	if errors.Is(err, unix.ESTALE) {
		return nil, errChanged
	}
	if err != nil {
		return nil, err // one that is gone is left out
	}
	if err := unix.Fstat(int(f.Fd()), &e.Stat); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// file writes what is no directory and returns where its inode is. Of a regular
// file, f is open.
func (b *builder) file(e *tree.Entry, f *os.File) (at int64, err error) {
	if f != nil {
		return b.regular(&e.Stat, int(f.Fd()))
	}
	i := inode{stat: &e.Stat, nlink: uint32(e.Stat.Nlink)}
	var target []byte
	switch e.Stat.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		n, err := unix.Readlinkat(e.Dir, e.Name, b.buf[:blockSize])
		if err != nil {
			return 0, err
		}
		target = b.buf[:n]
		i.size = int64(n)
	case unix.S_IFCHR, unix.S_IFBLK:
		i.place = device(e.Stat.Rdev)
	case unix.S_IFIFO, unix.S_IFSOCK:
	default:
		return 0, fmt.Errorf("file of mode %o: %w", e.Stat.Mode, errdefs.ErrInvalidArgument)
	}
	attrs, err := b.attrs.ofName(e.Dir, e.Name)
	if err != nil {
		return 0, err
	}
	at, contentsAt, err := b.write(&i, attrs, target)
	if err == nil && i.layout == layoutPlain && len(target) > 0 {
		err = b.space.put(target, contentsAt)
	}
	return at, err
}

var errChanged = fmt.Errorf("changed while it was read: %w", errdefs.ErrAborted)

// regular writes a file with its contents.
func (b *builder) regular(st *unix.Stat_t, fd int) (at int64, err error) {
	i := inode{stat: st, nlink: uint32(st.Nlink)}
	attrs, err := b.attrs.ofFile(fd)
	if err != nil {
		return 0, err
	}
	i.size = i.stat.Size
	var small []byte
	if i.size <= inlineMax {
		small = b.buf[:i.size]
		n, err := unix.Pread(fd, small, 0)
		if err != nil {
			return 0, err
		}
		clear(small[n:])
	}
	at, contentsAt, err := b.write(&i, attrs, small)
	if err != nil || i.size <= inlineMax {
		return at, err
	}
	return at, b.copy(contentsAt, fd, i.stat)
}

// write takes room for an inode and its contents, and writes it, with the
// contents if they are behind it and are known already.
func (b *builder) write(i *inode, attrs, contents []byte) (at, contentsAt int64, err error) {
	inline := 0
	if i.size > 0 && i.size <= inlineMax {
		i.layout, inline = layoutInline, int(i.size)
	}
	b.inodes++
	i.attrs, i.serial = len(attrs), uint32(b.inodes)
	head := inodeSize + len(attrs)
	if at, err = b.space.inode(head, inline); err != nil {
		return 0, 0, err
	}
	contentsAt = at + int64(head)
	if inline == 0 && i.size > 0 {
		if i.place, err = b.space.blocks(i.size); err != nil {
			return 0, 0, err
		}
		contentsAt = int64(i.place) << blockBits
	}
	raw := make([]byte, head+inline)
	i.encode(raw)
	copy(raw[inodeSize:], attrs)
	copy(raw[head:], contents[:min(len(contents), inline)])
	return at, contentsAt, b.space.put(raw, at)
}
