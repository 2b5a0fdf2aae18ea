package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/idmap"
	"github.com/gantryd/gantry/services/mount"
)

const detachLook = 200 * time.Microsecond // first look whether a mount has gone; then twice that, and so on

// mountFlags are fstab's words for the flags of mount(2). A word that clears a
// flag has clear set.
var mountFlags = map[string]struct {
	flag  uintptr
	clear bool
}{
	"async":         {unix.MS_SYNCHRONOUS, true},
	"atime":         {unix.MS_NOATIME, true},
	"bind":          {unix.MS_BIND, false},
	"defaults":      {0, false},
	"dev":           {unix.MS_NODEV, true},
	"diratime":      {unix.MS_NODIRATIME, true},
	"dirsync":       {unix.MS_DIRSYNC, false},
	"exec":          {unix.MS_NOEXEC, true},
	"mand":          {unix.MS_MANDLOCK, false},
	"noatime":       {unix.MS_NOATIME, false},
	"nodev":         {unix.MS_NODEV, false},
	"nodiratime":    {unix.MS_NODIRATIME, false},
	"noexec":        {unix.MS_NOEXEC, false},
	"nomand":        {unix.MS_MANDLOCK, true},
	"norelatime":    {unix.MS_RELATIME, true},
	"nostrictatime": {unix.MS_STRICTATIME, true},
	"nosuid":        {unix.MS_NOSUID, false},
	"rbind":         {unix.MS_BIND | unix.MS_REC, false},
	"relatime":      {unix.MS_RELATIME, false},
	"remount":       {unix.MS_REMOUNT, false},
	"ro":            {unix.MS_RDONLY, false},
	"rw":            {unix.MS_RDONLY, true},
	"strictatime":   {unix.MS_STRICTATIME, false},
	"suid":          {unix.MS_NOSUID, true},
	"sync":          {unix.MS_SYNCHRONOUS, false},
}

// propagations are the words that say who sees what is mounted below. They
// take a call of their own.
var propagations = map[string]uintptr{
	"private":     unix.MS_PRIVATE,
	"rprivate":    unix.MS_PRIVATE | unix.MS_REC,
	"shared":      unix.MS_SHARED,
	"rshared":     unix.MS_SHARED | unix.MS_REC,
	"slave":       unix.MS_SLAVE,
	"rslave":      unix.MS_SLAVE | unix.MS_REC,
	"unbindable":  unix.MS_UNBINDABLE,
	"runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// mountAll mounts a set on dir, in order. If one fails, none is left.
func mountAll(mounts []mount.Mount, dir string) error {
	for i, m := range mounts {
		if err := mountOne(m, dir); err != nil {
			return errors.Join(fmt.Errorf("mount %d (%s): %w", i, m.Type, err), unmountAll(dir))
		}
	}
	return nil
}

func mountOne(m mount.Mount, dir string) error {
	ids, options, err := idmap.Take(m.Options)
	if err != nil {
		return err
	}
	var flags, propagation uintptr
	var data []string
	for _, o := range options {
		if f, ok := mountFlags[o]; ok {
			if f.clear {
				flags &^= f.flag
			} else {
				flags |= f.flag
			}
		} else if p, ok := propagations[o]; ok {
			propagation |= p
		} else if o == "loop" {
			return fmt.Errorf("option %q: %w", o, errdefs.ErrNotImplemented)
		} else if o != "" {
			data = append(data, o)
		}
	}
	kind := m.Type
	if kind == "bind" || kind == "rbind" {
		flags |= mountFlags[kind].flag
		kind = ""
	}
	target := dir
	if m.Target != "" {
		below, err := beneath(dir, m.Target)
		if err != nil {
			return err
		}
		defer below.Close()
		target = fmt.Sprintf("/proc/self/fd/%d", below.Fd())
	}
	if !ids.IsZero() {
		return mappedMount{m.Source, kind, flags, propagation, data, ids}.on(target)
	}
	if err := mountCall(m.Source, target, kind, flags, data); err != nil {
		return err
	}
	// The kernel heeds no other flag while it binds.
	if restrict := flags &^ (unix.MS_BIND | unix.MS_REC); flags&unix.MS_BIND != 0 && restrict != 0 {
		if err := unix.Mount("", target, "", flags&^unix.MS_REC|unix.MS_REMOUNT, ""); err != nil {
			return fmt.Errorf("remount: %w", err)
		}
	}
	if propagation != 0 {
		if err := unix.Mount("", target, "", propagation, ""); err != nil {
			return fmt.Errorf("propagation: %w", err)
		}
	}
	return nil
}

// beneath opens the place for a mount inside another one, whatever links are
// in there.
func beneath(dir, target string) (*os.File, error) {
	root, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	fd, err := unix.Openat2(int(root.Fd()), strings.TrimPrefix(filepath.Clean("/"+target), "/"), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("target %q: %w", target, err)
	}
	return os.NewFile(uintptr(fd), target), nil
}

// mountCall is mount(2), whose data has room for a page. More layers than fit
// are named relative to the directory that they have in common.
func mountCall(source, target, kind string, flags uintptr, data []string) error {
	all := strings.Join(data, ",")
	if len(all) < os.Getpagesize() {
		return unix.Mount(source, target, kind, flags, all)
	}
	i := slices.IndexFunc(data, func(o string) bool { return strings.HasPrefix(o, "lowerdir=") })
	if i < 0 {
		return fmt.Errorf("options of %d bytes: %w", len(all), unix.E2BIG)
	}
	layers := strings.Split(strings.TrimPrefix(data[i], "lowerdir="), ":")
	common := commonDir(layers)
	if common == "" {
		return fmt.Errorf("options of %d bytes: %w", len(all), unix.E2BIG)
	}
	for j, l := range layers {
		layers[j] = strings.TrimPrefix(l, common+"/")
	}
	data = slices.Clone(data)
	data[i] = "lowerdir=" + strings.Join(layers, ":")
	all = strings.Join(data, ",")
	if len(all) >= os.Getpagesize() {
		return fmt.Errorf("options of %d bytes: %w", len(all), unix.E2BIG)
	}
	failed := make(chan error, 1)
	go func() {
		// The thread gets a working directory of its own, so it is not given
		// back: it ends with this function.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			failed <- err
			return
		}
		if err := unix.Chdir(common); err != nil {
			failed <- err
			return
		}
		failed <- unix.Mount(source, target, kind, flags, all)
	}()
	return <-failed
}

// commonDir is the deepest directory that all paths are below, or empty.
func commonDir(paths []string) string {
	common := filepath.Dir(paths[0])
	for _, p := range paths[1:] {
		for !strings.HasPrefix(p, common+"/") {
			if common = filepath.Dir(common); len(common) <= 1 {
				return ""
			}
		}
	}
	if len(common) <= 1 {
		return ""
	}
	return common
}

// detachAll removes every mount on dir from the tree and returns when that is
// so. What the kernel does after it, such as writing back all of the file
// system under an overlay, takes what it takes: begun is told to run it.
func detachAll(dir string, begun func(func())) error {
	for {
		id, mounted, known := mountOn(dir)
		switch {
		case !known:
			return unmountAll(dir)
		case !mounted:
			return nil
		}
		// One call for one mount: a call that is late may not find the next
		// one, which somebody has made since.
		done := make(chan error, 1)
		begun(func() { done <- unmountOne(dir) })
		if err := gone(dir, id, done); err != nil {
			return err
		}
	}
}

// gone returns when the mount of that id is no longer on dir, or done says why
// it stays.
func gone(dir string, id uint64, done <-chan error) error {
	for pause := detachLook; ; pause *= 2 {
		select {
		case err := <-done:
			return err
		case <-time.After(pause):
			if now, mounted, _ := mountOn(dir); !mounted || now != id {
				return nil
			}
		}
	}
}

// mountOn returns the id of the mount on dir, if there is one, and whether the
// kernel says such things.
func mountOn(dir string) (id uint64, mounted, known bool) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
	if errors.Is(err, unix.ENOENT) {
		return 0, false, true
	}
	known = err == nil && st.Mask&unix.STATX_MNT_ID != 0 && st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0
	return st.Mnt_id, st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, known
}

// unmountAll removes every mount on dir; no mount is no error.
func unmountAll(dir string) error {
	for {
		if _, mounted, known := mountOn(dir); known && !mounted {
			return nil
		}
		err := unmountOne(dir)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil // not a mount
		}
		if err != nil {
			return err
		}
	}
}

// unmountOne removes the uppermost mount on dir. One that is in use leaves the
// tree now and ends with its last user.
func unmountOne(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}
