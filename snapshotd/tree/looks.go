package tree

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A holder has extended attributes: an open file, or what must not be opened,
// by a path that ends at it.
type holder struct {
	fd   int
	path string
}

// held is what a descriptor for paths only is of.
func held(fd int) holder { return holder{path: byFD(fd)} }

// heldIn is what is called name in a directory.
func heldIn(dir int, name string) holder {
	return holder{path: "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name}
}

func (h holder) list(b []byte) (int, error) {
	if h.path == "" {
		return unix.Flistxattr(h.fd, b)
	}
	return unix.Listxattr(h.path, b)
}

func (h holder) get(name string, b []byte) (int, error) {
	if h.path == "" {
		return unix.Fgetxattr(h.fd, name, b)
	}
	return unix.Getxattr(h.path, name, b)
}

func (h holder) set(name string, b []byte) error {
	if h.path == "" {
		return unix.Fsetxattr(h.fd, name, b, 0)
	}
	return unix.Lsetxattr(h.path, name, b, 0)
}

func (h holder) own(st *unix.Stat_t) error {
	uid, gid := int(st.Uid), int(st.Gid)
	if h.path == "" {
		return unix.Fchown(h.fd, uid, gid)
	}
	return unix.Lchown(h.path, uid, gid)
}

// chmod sets the mode; a symbolic link has none.
func (h holder) chmod(st *unix.Stat_t) error {
	mode := st.Mode & 0o7777
	switch {
	case h.path == "":
		return unix.Fchmod(h.fd, mode)
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return nil
	}
	return unix.Chmod(h.path, mode)
}

// looks gives a copy everything but the times. The owner is first: to change it
// takes the set-user-id bit and the capabilities away.
func (c *copier) looks(from, to holder, st *unix.Stat_t) error {
	if err := to.own(st); err != nil {
		return fmt.Errorf("owner: %w", err)
	}
	if err := to.chmod(st); err != nil {
		return fmt.Errorf("mode: %w", err)
	}
	if c.names == nil {
		c.names, c.value = make([]byte, attrMax), make([]byte, attrMax)
	}
	n, err := from.list(c.names)
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("attributes: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(c.names[:n]), "\x00"), "\x00") {
		if err := c.attribute(from, to, name); err != nil {
			return fmt.Errorf("attribute %.100q: %w", name, err)
		}
	}
	return nil
}

// attrMax is the kernel's limit for an attribute, and for all names together.
const attrMax = 64 << 10

func (c *copier) attribute(from, to holder, name string) error {
	n, err := from.get(name, c.value)
	if errors.Is(err, unix.ENODATA) {
		return nil
	}
	if err == nil {
		err = to.set(name, c.value[:n])
	}
	if err != nil && hosts(name) {
		return nil
	}
	return err
}

// hosts tells which attributes are the host's own, such as labels: a copy has
// them as far as the host allows.
func hosts(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return false
	}
	return !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "trusted.")
}
