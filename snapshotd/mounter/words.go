package mounter

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// attributes are the words of mount(8) that are of a mount and not of the file
// system in it.
var attributes = map[string]struct{ set, clear uint64 }{
	"ro": {set: unix.MOUNT_ATTR_RDONLY}, "rw": {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid": {set: unix.MOUNT_ATTR_NOSUID}, "suid": {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev": {set: unix.MOUNT_ATTR_NODEV}, "dev": {clear: unix.MOUNT_ATTR_NODEV},
	"noexec": {set: unix.MOUNT_ATTR_NOEXEC}, "exec": {clear: unix.MOUNT_ATTR_NOEXEC},
	"nodiratime": {set: unix.MOUNT_ATTR_NODIRATIME}, "diratime": {clear: unix.MOUNT_ATTR_NODIRATIME},
	"noatime":     {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	"strictatime": {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"relatime":    {clear: unix.MOUNT_ATTR__ATIME},
	"defaults":    {}, "bind": {}, "rbind": {}, "loop": {},
}

var propagations = map[string]uint64{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
}

// Words are the options of a mount.
type words struct {
	set, clear  uint64 // attributes
	propagation uint64 // of a bind mount
	loop        bool
	recursive   bool
	rest        []string // the file system's
}

func (w words) readOnly() bool { return w.set&unix.MOUNT_ATTR_RDONLY != 0 }

// read sorts the options of a mount. Of two that contradict each other the last
// counts.
func read(options []string) words {
	var w words
	for _, o := range options {
		if a, ok := attributes[o]; ok {
			w.set = w.set&^a.clear | a.set
			w.clear = w.clear&^a.set | a.clear
			w.loop = w.loop || o == "loop"
			w.recursive = w.recursive || o == "rbind"
			continue
		}
		if p, ok := propagations[o]; ok {
			w.propagation = p
			continue
		}
		w.rest = append(w.rest, o)
	}
	return w
}

// options are what a file system may be told beside those; after "=" anything
// without a slash, or one of a list.
var options = map[string][]string{
	"overlay": {"userxattr", "volatile", "index=on", "index=off", "metacopy=on", "metacopy=off", "nfs_export=on", "nfs_export=off",
		"redirect_dir=on", "redirect_dir=off", "redirect_dir=follow", "redirect_dir=nofollow", "xino=on", "xino=off", "xino=auto",
		"uuid=on", "uuid=off", "uuid=null", "uuid=auto"},
	"erofs": {"user_xattr", "nouser_xattr", "acl", "noacl", "cache_strategy=disabled", "cache_strategy=readahead", "cache_strategy=readaround"},
	"ext4":  {"noload", "norecovery", "discard", "nodiscard", "user_xattr", "acl", "noacl", "errors=remount-ro", "errors=continue"},
	"xfs":   {"norecovery", "nouuid", "discard", "nodiscard"},
}

// take returns the values of the options that begin with the words, in order,
// and requires the others to be known.
func (w words) take(typ string, names ...string) (map[string][]string, []string, error) {
	values := make(map[string][]string)
	var others []string
	for _, o := range w.rest {
		name, value, ok := strings.Cut(o, "=")
		switch {
		case ok && slices.Contains(names, name):
			values[name] = append(values[name], value)
		case slices.Contains(options[typ], o):
			others = append(others, o)
		default:
			return nil, nil, fmt.Errorf("mount of type %s with option %.300q: %w", typ, o, errdefs.ErrNotImplemented)
		}
	}
	return values, others, nil
}
