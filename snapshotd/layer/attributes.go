package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/tree"
)

// xattrPrefix is how archives spell extended attributes.
const xattrPrefix = "SCHILY.xattr."

// Attributes are what an entry says of its file besides the contents.
type attributes struct {
	uid, gid int
	mode     uint32
	times    [2]unix.Timespec // of access and of change
	extended []attribute
	dropped  int64 // extended ones that are not allowed
}

type attribute struct{ name, value string }

func attributesOf(hdr *tar.Header) (*attributes, error) {
	for _, id := range []int{hdr.Uid, hdr.Gid} {
		// The last one means "leave it as it is" to the kernel.
		if id < 0 || int64(id) >= math.MaxUint32 {
			return nil, fmt.Errorf("owner %d:%d: %w", hdr.Uid, hdr.Gid, errdefs.ErrInvalidArgument)
		}
	}
	a := &attributes{uid: hdr.Uid, gid: hdr.Gid, mode: uint32(hdr.Mode) & 0o7777}
	accessed := hdr.AccessTime
	if accessed.IsZero() {
		accessed = hdr.ModTime
	}
	a.times = [2]unix.Timespec{timespec(accessed), timespec(hdr.ModTime)}
	for key, value := range hdr.PAXRecords {
		name, is := strings.CutPrefix(key, xattrPrefix)
		switch {
		case !is:
		case Allowed(name):
			a.extended = append(a.extended, attribute{name, value})
		default:
			a.dropped++
		}
	}
	return a, nil
}

// Allowed tells which extended attributes a layer may set. All else belongs to
// the host: the kernel's own, and those by which overlayfs stacks layers.
func Allowed(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

// timespec brings any time into the form that the kernel takes; it cuts what
// the file system cannot keep.
func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{}
	}
	ts := unix.Timespec{Nsec: int64(t.Nanosecond())}
	ts.Sec = t.Unix()
	return ts
}

// set gives a file or directory everything but the times. The owner is first:
// to change it takes the set-user-id bit and the capabilities away.
func (a *attributes) set(fd int, dropped *atomic.Int64) error {
	if err := unix.Fchown(fd, a.uid, a.gid); err != nil {
		return a.noOwner(err)
	}
	if err := a.clear(fd); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, a.mode); err != nil {
		return fmt.Errorf("mode: %w", err)
	}
	lost := a.dropped
	for _, e := range a.extended {
		err := unix.Fsetxattr(fd, e.name, []byte(e.value), 0)
		switch {
		case errors.Is(err, unix.ENOTSUP):
			lost++
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.E2BIG), errors.Is(err, unix.ERANGE),
			errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPERM):
			return fmt.Errorf("attribute %.100q of %d bytes: %w: %w", e.name, len(e.value), err, errdefs.ErrInvalidArgument)
		case err != nil:
			return fmt.Errorf("attribute %.100q: %w", e.name, err)
		}
	}
	if lost > 0 {
		dropped.Add(lost)
	}
	return nil
}

// noOwner says what the kernel means by EINVAL: there is no such user here.
func (a *attributes) noOwner(err error) error {
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("owner %d:%d is none of the ids of this user namespace, which needs more (/etc/subuid, /etc/subgid): %w",
			a.uid, a.gid, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("owner: %w", err)
}

// clear takes away what the entry does not have, and a layer may set: a directory
// can have been there before, and whatever is made in one with a default access
// control list begins with a list of its own.
func (a *attributes) clear(fd int) error {
	if n, err := unix.Flistxattr(fd, nil); n == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	list := make([]byte, 64<<10) // the kernel's limit
	n, err := unix.Flistxattr(fd, list)
	if err != nil {
		return fmt.Errorf("attributes: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if !Allowed(name) || slices.ContainsFunc(a.extended, func(e attribute) bool { return e.name == name }) {
			continue
		}
		if err := unix.Fremovexattr(fd, name); err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("attribute %.100q: %w", name, err)
		}
	}
	return nil
}

// setFile is set, and the times.
func (a *attributes) setFile(fd int, dropped *atomic.Int64) error {
	if err := a.set(fd, dropped); err != nil {
		return err
	}
	if err := futimens(fd, &a.times); err != nil {
		return fmt.Errorf("times: %w", err)
	}
	return nil
}

// setNode is setFile for a device or a pipe, which must not be opened.
func (a *attributes) setNode(dir int, name string) error {
	if err := a.setLink(dir, name); err != nil {
		return err
	}
	// The one that it can have from its directory.
	err := unix.Lremovexattr("/proc/self/fd/"+strconv.Itoa(dir)+"/"+name, "system.posix_acl_access")
	if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("access control list: %w", err)
	}
	err = unix.Fchmodat(dir, name, a.mode, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.EOPNOTSUPP) {
		// Linux before 6.6 does it to a descriptor only.
		err = chmodNode(dir, name, a.mode)
	}
	if err != nil {
		return fmt.Errorf("mode: %w", err)
	}
	// The mode may have changed it.
	return unix.UtimesNanoAt(dir, name, a.times[:], unix.AT_SYMLINK_NOFOLLOW)
}

func chmodNode(dir int, name string, mode uint32) error {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode)
}

// setLink sets what a symbolic link has.
func (a *attributes) setLink(dir int, name string) error {
	if err := unix.Fchownat(dir, name, a.uid, a.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return a.noOwner(err)
	}
	if err := unix.UtimesNanoAt(dir, name, a.times[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("times: %w", err)
	}
	return nil
}

// dirTimes are the times that directories get when nothing more is put into
// them.
type dirTimes struct {
	list []dirTime
	size int
}

type dirTime struct {
	name  string
	ino   uint64
	times [2]unix.Timespec
}

// listMax is how long a list becomes before it is worked off, in bytes.
const listMax = 8 << 20

func (l *dirTimes) add(name string, ino uint64, a *attributes) {
	l.list = append(l.list, dirTime{name, ino, a.times})
	l.size += len(name) + 64
}

func (l *dirTimes) full() bool { return l.size > listMax }

// set sets the times of the directories that are still where they were.
func (l *dirTimes) set(root int) error {
	for _, d := range l.list {
		if err := d.set(root); err != nil {
			return fmt.Errorf("entry %.300q: times: %w", d.name, err)
		}
	}
	l.list, l.size = l.list[:0], 0
	return nil
}

func (d *dirTime) set(root int) error {
	fd, err := tree.Open(root, d.name)
	if err != nil {
		return nil // replaced by something else
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Ino != d.ino {
		return nil
	}
	return unix.UtimesNanoAt(fd, ".", d.times[:], 0)
}

// CopyAttributes copies the extended attributes that a layer may set from one
// open file to another.
func CopyAttributes(to, from int) error {
	list := make([]byte, 64<<10) // the kernel's limit
	n, err := unix.Flistxattr(from, list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10) // the kernel's limit
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if !Allowed(name) {
			continue
		}
		n, err := unix.Fgetxattr(from, name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return fmt.Errorf("attribute %.100q: %w", name, err)
		}
		if err := unix.Fsetxattr(to, name, value[:n], 0); err != nil {
			return fmt.Errorf("attribute %.100q: %w", name, err)
		}
	}
	return nil
}
