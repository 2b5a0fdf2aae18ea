package erofs

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// attrKinds are the beginnings of names that an image has numbers for.
var attrKinds = []struct {
	prefix string
	number byte
}{
	{"user.", 1},
	{"system.posix_acl_access", 2},
	{"system.posix_acl_default", 3},
	{"trusted.", 4},
	{"security.", 6},
}

// An attrReader reads the extended attributes of files into the form of an
// image. It is used again and again for its buffers.
type attrReader struct {
	overlay string // prefix of the marks of overlayfs
	list    []byte
	value   []byte
	out     []byte
}

func newAttrReader(overlay string) *attrReader {
	return &attrReader{overlay: overlay, list: make([]byte, 64<<10), value: make([]byte, 64<<10)} // the kernel's limits
}

// ofFile reads those of an open file. What it returns is good until the next
// call.
func (r *attrReader) ofFile(fd int) ([]byte, error) {
	return r.read(
		func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(name string, b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
}

// ofName is ofFile for what must not be opened.
func (r *attrReader) ofName(dir int, name string) ([]byte, error) {
	path := "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
	return r.read(
		func(b []byte) (int, error) { return unix.Llistxattr(path, b) },
		func(attr string, b []byte) (int, error) { return unix.Lgetxattr(path, attr, b) })
}

func (r *attrReader) read(list func([]byte) (int, error), get func(string, []byte) (int, error)) ([]byte, error) {
	n, err := list(r.list)
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("attributes: %w", err)
	}
	names := strings.Split(strings.TrimSuffix(string(r.list[:n]), "\x00"), "\x00")
	slices.Sort(names)
	r.out = append(r.out[:0], make([]byte, attrsHeader)...)
	for _, name := range names {
		keep, err := r.keep(name)
		if err != nil {
			return nil, err
		}
		if !keep {
			continue
		}
		n, err := get(name, r.value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("attribute %.100q: %w", name, err)
		}
		if err := r.add(name, r.value[:n]); err != nil {
			return nil, fmt.Errorf("attribute %.100q of %d bytes: %w", name, n, err)
		}
	}
	if len(r.out) == attrsHeader {
		return nil, nil
	}
	return r.out, nil
}

// keep tells whether an attribute is the layer's. Most of what overlayfs notes
// is about the directory that it had above and means nothing in an image. A
// file whose contents or place are elsewhere cannot be in one at all.
func (r *attrReader) keep(name string) (bool, error) {
	mark, is := strings.CutPrefix(name, r.overlay)
	switch {
	case !is:
		return true, nil
	case mark == "opaque", mark == "whiteout":
		return true, nil
	case mark == "redirect", mark == "metacopy":
		return false, fmt.Errorf("attribute %s: overlayfs was mounted with options that snapshots do not go with: %w", name, errdefs.ErrFailedPrecondition)
	}
	return false, nil
}

var errAttrs = fmt.Errorf("more than an image can have: %w", errdefs.ErrInvalidArgument)

func (r *attrReader) add(name string, value []byte) error {
	for _, k := range attrKinds {
		rest, is := strings.CutPrefix(name, k.prefix)
		if !is {
			continue
		}
		if len(rest) > attrNameMax || len(value) > attrMax {
			return errAttrs
		}
		r.out = append(r.out, byte(len(rest)), k.number)
		r.out = le.AppendUint16(r.out, uint16(len(value)))
		r.out = append(append(r.out, rest...), value...)
		r.out = append(r.out, make([]byte, -len(r.out)&3)...)
		if len(r.out) > attrsMax {
			return errAttrs
		}
		return nil
	}
	return nil // of a kind that this format does not know, such as "system.sockprotoname"
}
