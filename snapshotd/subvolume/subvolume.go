// Package subvolume makes, measures and removes subvolumes of btrfs: trees that
// the file system copies whole, at no cost. Whoever ran in one may have made more
// inside; those are found through the records of the file system and not by
// looking through what is in it.
package subvolume

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/tree"
)

// rootIno is the number of the root directory of each subvolume.
const rootIno = 256

// There tells whether a directory is on btrfs.
func There(dir int) (is bool, err error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(dir, &st); err != nil {
		return false, err
	}
	return uint32(st.Type) == unix.BTRFS_SUPER_MAGIC, nil //nolint:gosec // as wide as the kernel has it
}

// Make makes an empty subvolume called name in a directory, with the mode that
// the umask leaves.
func Make(dir int, name string) error {
	var a volArgs
	if err := a.setName(name); err != nil {
		return err
	}
	return with(dir, func(fd int) error { return ioctl(fd, iocSubvolCreate, a[:]) })
}

// Clone makes a writable copy, called name in a directory, of the subvolume that
// from is the root of. What is written to it so far is written to disk with it.
// The subvolumes in it are empty directories in the copy.
func Clone(dir int, name string, from int) error {
	var a volArgs
	if err := a.setName(name); err != nil {
		return err
	}
	return with(from, func(src int) error {
		a.setFD(src)
		return with(dir, func(fd int) error { return ioctl(fd, iocSnapCreate, a[:]) })
	})
}

// ReadOnly tells whether a subvolume can only be read.
func ReadOnly(vol int) (is bool, err error) {
	err = with(vol, func(fd int) error {
		var flags flagArgs
		if err := ioctl(fd, iocGetFlags, flags[:]); err != nil {
			return err
		}
		is = flags.get()&flagReadOnly != 0
		return nil
	})
	return is, err
}

// SetReadOnly makes a subvolume one that can only be read, by whomever, or one
// that can be written again.
func SetReadOnly(vol int, readOnly bool) error {
	return with(vol, func(fd int) error {
		var flags flagArgs
		if err := ioctl(fd, iocGetFlags, flags[:]); err != nil {
			return err
		}
		next := flags.get() &^ flagReadOnly
		if readOnly {
			next |= flagReadOnly
		}
		if next == flags.get() {
			return nil
		}
		flags.set(next)
		return ioctl(fd, iocSetFlags, flags[:])
	})
}

// Remove removes the subvolume called name in a directory, and those that are in
// it. What is no subvolume is removed as any other directory; a missing one is
// fine.
func Remove(ctx context.Context, dir int, name string) error {
	fd, err := tree.OpenChild(dir, name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return tree.Remove(ctx, dir, name)
	case err != nil:
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if is, err := There(fd); err != nil || !is || st.Ino != rootIno {
		return errors.Join(err, tree.Remove(ctx, dir, name))
	}
	info, err := infoOf(fd)
	if err != nil {
		return err
	}
	if err := removeInside(ctx, fd, info.id()); err != nil {
		return fmt.Errorf("subvolume inside of it: %w", err)
	}
	var a volArgs
	if err := a.setName(name); err != nil {
		return err
	}
	destroy := func(dir int) error { return ioctl(dir, iocSnapDestroy, a[:]) }
	err = with(dir, destroy)
	if errors.Is(err, unix.EPERM) && loosen(fd) {
		err = with(dir, destroy)
	}
	return err
}

// loosen takes the marks from the root of a subvolume that keep it from being
// removed, if it has any, and tells whether it was worth it.
func loosen(vol int) bool { return SetReadOnly(vol, false) == nil && tree.Loosen(vol) }

// removeInside removes the subvolumes in another, the innermost first.
func removeInside(ctx context.Context, fd int, id uint64) error {
	for inside := []uint64{id}; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		last := inside[len(inside)-1]
		child, err := firstChild(fd, last)
		switch {
		case err != nil:
			return err
		case child != 0:
			inside = append(inside, child)
			continue
		case len(inside) == 1:
			return nil
		}
		inside = inside[:len(inside)-1]
		if err := destroy(fd, last, inside[len(inside)-1]); err != nil {
			return err
		}
	}
}

// destroy removes a subvolume, wherever it is in that of the id in.
func destroy(fd int, id, in uint64) error {
	var a volArgs
	a.setID(id)
	err := ioctl(fd, iocSnapDestroy, a[:])
	if errors.Is(err, unix.EROFS) {
		// What it is in can only be read.
		if err := withID(fd, in, func(vol int) error { return SetReadOnly(vol, false) }); err != nil {
			return err
		}
		err = ioctl(fd, iocSnapDestroy, a[:])
	}
	if errors.Is(err, unix.EPERM) {
		// A root is marked, its own or that above. Where it is a directory
		// between the two, it stays.
		for _, vol := range []uint64{id, in} {
			if err := withID(fd, vol, func(vol int) error { loosen(vol); return nil }); err != nil {
				return err
			}
		}
		err = ioctl(fd, iocSnapDestroy, a[:])
	}
	return err
}

// withID calls fn with the root of a subvolume, on the file system of fd.
func withID(fd int, id uint64, fn func(vol int) error) error {
	vol, err := openID(fd, id)
	if err != nil {
		return err
	}
	defer unix.Close(vol)
	return fn(vol)
}

// firstChild returns a subvolume that is in another; 0 if there is none.
func firstChild(fd int, id uint64) (child uint64, err error) {
	s := search{
		Tree: rootTree, MinObject: id, MaxObject: id, MinType: typeRootRef, MaxType: typeRootRef, MaxOffset: max64, MaxTransaction: max64,
	}
	err = s.each(fd, func(i item) bool {
		child = i.Offset
		return false
	})
	return child, err
}

// A Usage is what a subvolume occupies.
type Usage struct {
	Inodes int64
	Size   int64 // bytes of disk
}

// Measure returns what a subvolume occupies by itself; with since, what was
// written to it since it was cloned. It reads the records of the file system that
// changed since, and no directory. What is only in memory does not count.
func Measure(ctx context.Context, vol int, since bool) (u Usage, err error) {
	err = with(vol, func(fd int) error {
		info, err := infoOf(fd)
		if err != nil {
			return err
		}
		var after uint64
		if since {
			after = info.cloned() + 1
		}
		s := search{
			Tree: info.id(), MinObject: rootIno, MaxObject: lastIno, MaxType: max32, MaxOffset: max64, MinTransaction: after, MaxTransaction: max64,
		}
		if err := s.each(fd, func(i item) bool {
			u.add(i, after)
			return ctx.Err() == nil
		}); err != nil {
			return err
		}
		return ctx.Err()
	})
	return u, err
}

// add counts a record, if it is of a transaction not before after.
func (u *Usage) add(i item, after uint64) {
	switch {
	case i.Type == typeInode && len(i.data) >= inodeLen && inodeTransaction(i.data) >= after:
		u.Inodes++
	case i.Type == typeExtent && len(i.data) >= extentHead && extentTransaction(i.data) >= after:
		u.Size += extentSize(i.data)
	}
}

// with calls fn with a descriptor that can be asked, of a directory that may be
// open for paths only.
func with(dir int, fn func(fd int) error) error {
	fd, err := tree.Reopen(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return fn(fd)
}
