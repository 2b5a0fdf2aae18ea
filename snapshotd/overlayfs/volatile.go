package overlayfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/snapshotd/driver"
)

// The kernel leaves a mark in the work directory of a volatile overlay, and mounts
// nothing on a marked one: it cannot tell one that was unmounted from one that a
// crash of the machine ended, with who knows which of its writes on disk. The
// boot can: a file of the snapshot says in which one it was given out, and in
// that one the mark is taken away before it is given out again.

const volatileOption = "volatile"

// bootName is what that file is called, beside "fs".
const bootName = "boot"

// thisBoot is a name of the time since the kernel was started.
func thisBoot() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), nil
}

// resume has an active snapshot ready to be mounted once more. One that was
// mounted volatile in an earlier boot is [errdefs.ErrFailedPrecondition].
func (d *Driver) resume(ctx context.Context, r driver.Ref) error {
	then, err := os.ReadFile(d.dirs.Path(r.ID, bootName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	now, err := thisBoot()
	if err != nil {
		return err
	}
	if string(then) != now {
		return fmt.Errorf("overlay %d was volatile, and the machine has been started since: %w", r.ID, errdefs.ErrFailedPrecondition)
	}
	return d.unmark(ctx, d.work(r.ID))
}

// unmark takes the kernel's mark away.
func (d *Driver) unmark(ctx context.Context, work string) error {
	mark := filepath.Join(work, "work", "incompat", volatileOption)
	if _, err := os.Lstat(mark); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return d.dirs.Disk.RemoveTree(ctx, mark)
}

// handOut has an active snapshot ready to be mounted volatile. What is noted is
// not synced: nothing that is written to the snapshot is before it.
func (d *Driver) handOut(ctx context.Context, r driver.Ref) error {
	d.handing.Lock()
	defer d.handing.Unlock()
	if err := d.resume(ctx, r); err != nil {
		return err
	}
	path := d.dirs.Path(r.ID, bootName)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	now, err := thisBoot()
	if err != nil {
		return err
	}
	return d.dirs.Disk.Append(path, []byte(now))
}
