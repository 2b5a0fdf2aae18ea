package layer

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The extended attributes that a detached layer leaves, until it is put over
// others: DetachedAttr on its root, and ImplicitAttr on each directory that
// entries went through before it had one of its own, with one of the values
// below. What was gone through may be a link in a layer below.
const (
	DetachedAttr = "trusted.gantry.detached"
	ImplicitAttr = "trusted.gantry.implicit"

	Free     = "y" // may be put over others
	Grounded = "n" // is as it is to be with nothing below, and may be wrong on others

	Implicit = "y" // has no entry: owner and mode are those of the layer below
	Passed   = "e" // got its entry later
)

// ErrBelow says that a detached layer has an entry that may need the layers
// below: the layer is to be extracted on top of them, which has the last word.
var ErrBelow = errors.New("the layers below may have what it needs")

// lacks says of an error of a detached layer that it may be for the layers below.
func (x *extractor) lacks(err error) error {
	if err == nil || !x.target.Detached {
		return err
	}
	return fmt.Errorf("%w: %w", ErrBelow, err)
}

// displaces grounds a detached layer that replaces one of its own directories, or
// puts one in the place of something else of its own: what went through the one,
// or is hidden by the other, only the layers below know.
func (x *extractor) displaces(dir int, name string, directory bool) error {
	if !x.target.Detached {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if !directory && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	return mark(x.own, ".", DetachedAttr, Grounded, 0)
}

// explicit notes that a directory has got an entry.
func (x *extractor) explicit(fd int) error {
	if !x.target.Detached {
		return nil
	}
	err := unix.Fsetxattr(fd, ImplicitAttr, []byte(Passed), unix.XATTR_REPLACE)
	if errors.Is(err, unix.ENODATA) {
		return nil
	}
	return err
}
