// Package kernel asks the kernel for mounts that are mounted nowhere.
package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/detached"
	"github.com/gantryd/gantry/services/idmap"
)

// An Overlay is what the kernel is asked to stack. Paths are relative to Dir.
type Overlay struct {
	Dir     string   // absolute
	Upper   string   // empty for one that can only be read
	Work    string   // beside Upper
	Lower   []string // the topmost first
	Options []string // such as "index=off"

	// Images are files, each an EROFS image, that are below Lower. One of them
	// alone is not stacked.
	Images []string

	// IDs are those that what is below Upper has for whoever looks through the
	// overlay: either directories or images. It is an [errors.ErrUnsupported]
	// where there are no such mounts.
	IDs idmap.Map
}

// A Kernel makes mounts. What it returns is mounted nowhere: it is reached by
// its descriptor and gone when that is closed, so that a daemon that dies leaves
// nothing behind.
type Kernel interface {
	Overlay(o Overlay) (*os.File, error)
}

// Linux is the real kernel.
type Linux struct {
	// old is set once the kernel did not know how to add one layer at a time
	// (before 6.8).
	old *atomic.Bool

	// oldImages is set once the kernel did not stack images that are mounted
	// nowhere (before 6.15).
	oldImages *atomic.Bool
}

var _ Kernel = Linux{}

// New returns the kernel that there is, which is asked in the newest way that it
// knows.
func New() Linux { return Linux{old: new(atomic.Bool), oldImages: new(atomic.Bool)} }

// Old returns the kernel that there is, asked as one before 6.8 has to be.
func Old() Linux {
	k := New()
	k.old.Store(true)
	return k
}

// Overlay implements Kernel.
func (k Linux) Overlay(o Overlay) (*os.File, error) {
	if len(o.Images) > 0 {
		return k.stackImages(o)
	}
	if !o.IDs.IsZero() {
		return o.mapped()
	}
	if !k.old.Load() {
		f, err := o.detached()
		if !errors.Is(err, errOldKernel) {
			return f, err
		}
		k.old.Store(true)
	}
	return o.private()
}

var errOldKernel = errors.New("the kernel does not know lowerdir+")

// detached makes the mount with the new system calls, which attach it nowhere.
func (o Overlay) detached() (*os.File, error) {
	return o.stack(nil)
}

// stack is detached with the images that are open.
func (o Overlay) stack(images []*os.File) (*os.File, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) {
		return nil, errOldKernel
	}
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	defer unix.Close(fs)
	for i := range len(o.Lower) + len(images) {
		var err error
		if i < len(o.Lower) {
			err = unix.FsconfigSetString(fs, "lowerdir+", filepath.Join(o.Dir, o.Lower[i]))
		} else {
			err = addLayer(fs, int(images[i-len(o.Lower)].Fd()))
		}
		if errors.Is(err, unix.EINVAL) {
			return nil, errOldKernel
		}
		if err != nil {
			return nil, fmt.Errorf("overlay: lower directory: %w", err)
		}
	}
	set := func(key, value string) {
		if err == nil {
			if err = unix.FsconfigSetString(fs, key, value); err != nil {
				err = fmt.Errorf("overlay: option %s: %w", key, err)
			}
		}
	}
	if o.Upper != "" {
		set("upperdir", filepath.Join(o.Dir, o.Upper))
		set("workdir", filepath.Join(o.Dir, o.Work))
	}
	for _, opt := range o.Options {
		if key, value, ok := strings.Cut(opt, "="); ok {
			set(key, value)
		} else if err == nil {
			err = unix.FsconfigSetFlag(fs, key)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("overlay: %w%s", err, said(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// said returns what the kernel said about the failure, if anything.
func said(fs int) string {
	var b [512]byte
	n, err := unix.Read(fs, b[:])
	if err != nil || n <= 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(b[:n])) + ")"
}

// private makes the mount on a thread in a mount namespace of its own.
func (o Overlay) private() (*os.File, error) { return detached.Apart(o.mountIn) }

// mountIn mounts in the namespace that the calling thread is alone in.
func (o Overlay) mountIn() (*os.File, error) {
	// Relative paths: all options together are a page at most.
	if err := unix.Chdir(o.Dir); err != nil {
		return nil, err
	}
	options := append([]string{"lowerdir=" + strings.Join(o.Lower, ":")}, o.Options...)
	if o.Upper != "" {
		options = append(options, "upperdir="+o.Upper, "workdir="+o.Work)
	}
	at := o.Lower[0]
	if err := unix.Mount("overlay", at, "overlay", 0, strings.Join(options, ",")); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	fd, err := unix.Open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("overlay: %w", err)
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// InUserNamespace tells whether the process is root of a user namespace only,
// where overlayfs keeps its marks in other attributes.
func InUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(b))
	return err == nil && len(f) >= 3 && (f[0] != "0" || f[1] != "0" || f[2] != "4294967295")
}

// OverlayAttrs is the prefix of the attributes by which overlayfs stacks layers.
func OverlayAttrs() string {
	if InUserNamespace() {
		return "user.overlay."
	}
	return "trusted.overlay."
}

// OverlayOptions are what every overlay is mounted with. A layer has to mean the
// same on every machine, and for whoever reads it without the layers below. So
// what is written is whole files and directories by their names, whatever the
// kernel takes when nothing is said.
func OverlayOptions() []string {
	// The options are known when the module is there, and this loads it.
	if fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC); err == nil {
		unix.Close(fd)
	}
	user := InUserNamespace()
	var options []string
	if user {
		// With it, the kernel allows neither of the last two below.
		options = append(options, "userxattr")
	}
	// An index ties a directory to the one mount that used it first. A redirect
	// names another directory of the layers below, and a file of metadata has
	// its contents there.
	for _, name := range []string{"index", "redirect_dir", "metacopy"} {
		if user && name != "index" {
			continue
		}
		if _, err := os.Stat("/sys/module/overlay/parameters/" + name); err == nil {
			options = append(options, name+"=off")
		}
	}
	return options
}
