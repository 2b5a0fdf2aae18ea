package snapshotd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// An overlay is what the kernel is asked to stack. Paths are relative to dir.
type overlay struct {
	dir     string   // absolute
	upper   string   // empty for one that can only be read
	work    string   // beside upper
	lower   []string // the topmost first
	options []string // such as "index=off"
}

// kernel is how this package asks for mounts. What it returns is mounted
// nowhere: it is reached by its descriptor and gone when that is closed, so
// that a daemon that dies leaves nothing behind.
type kernel interface {
	Overlay(o overlay) (*os.File, error)
}

// linux is the real kernel.
type linux struct {
	// old is set once the kernel did not know how to add one layer at a time
	// (before 6.8).
	old *atomic.Bool
}

func newKernel() linux { return linux{old: new(atomic.Bool)} }

func (k linux) Overlay(o overlay) (*os.File, error) {
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
func (o overlay) detached() (*os.File, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) {
		return nil, errOldKernel
	}
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	defer unix.Close(fs)
	for _, l := range o.lower {
		err := unix.FsconfigSetString(fs, "lowerdir+", filepath.Join(o.dir, l))
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
	if o.upper != "" {
		set("upperdir", filepath.Join(o.dir, o.upper))
		set("workdir", filepath.Join(o.dir, o.work))
	}
	for _, opt := range o.options {
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

// private makes the mount on a thread in a mount namespace of its own, and
// keeps a descriptor of it. The namespace ends with the thread.
func (o overlay) private() (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result, 1)
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The first thread stands for the process in /proc and cannot end.
			// While it is held here, another goroutine gets another thread.
			inner := make(chan struct{})
			go func() { defer close(inner); run() }()
			<-inner
			runtime.UnlockOSThread()
			return
		}
		// The thread is not unlocked: it ends with the goroutine.
		f, err := o.mountHere()
		done <- result{f, err}
	}
	go run()
	r := <-done
	return r.f, r.err
}

// mountHere mounts on the calling thread, which it takes out of the mount
// namespace of the process. Unmounts outside are followed, so that the copies
// of other mounts in the new namespace keep nothing busy.
func (o overlay) mountHere() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return nil, fmt.Errorf("mount namespace: %w", err)
	}
	// Relative paths: all options together are a page at most.
	if err := unix.Chdir(o.dir); err != nil {
		return nil, err
	}
	options := append([]string{"lowerdir=" + strings.Join(o.lower, ":")}, o.options...)
	if o.upper != "" {
		options = append(options, "upperdir="+o.upper, "workdir="+o.work)
	}
	at := o.lower[0]
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

// inUserNamespace tells whether the process is root of a user namespace only,
// where overlayfs keeps its marks in other attributes.
func inUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(b))
	return err == nil && len(f) >= 3 && (f[0] != "0" || f[1] != "0" || f[2] != "4294967295")
}

// overlayOptions are what every overlay is mounted with.
func overlayOptions() []string {
	var options []string
	if inUserNamespace() {
		options = append(options, "userxattr")
	}
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		// An index would tie a directory to the one mount that used it first.
		options = append(options, "index=off")
	}
	return options
}

// probe finds out whether overlays can be made on the file system of dir.
func probe(k kernel, d disk, dir string, options []string) error {
	const name = "probe"
	parts := overlay{dir: dir, upper: name + "/upper", work: name + "/work", lower: []string{name + "/lower"}, options: options}
	for _, p := range []string{name, parts.upper, parts.work, parts.lower[0]} {
		if err := d.Mkdir(filepath.Join(dir, p), 0o700); err != nil {
			return err
		}
	}
	f, err := k.Overlay(parts)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st)
}
