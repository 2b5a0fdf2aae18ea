package mounter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/activation"
)

// makeDir makes a directory that has no name before it has its owner and mode: it
// has another one, under which a crash leaves it for the next to use.
func makeDir(parent *os.File, name string, d activation.Dir) error {
	if dir, err := beneath(parent, name, unix.O_DIRECTORY); !errors.Is(err, unix.ENOENT) {
		if err != nil {
			return err
		}
		defer dir.Close()
		return sameDir(dir, name, d)
	}
	making := "." + name + ".new"
	if err := unix.Mkdirat(int(parent.Fd()), making, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	dir, err := beneath(parent, making, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	// The owner before the mode: a change of owner may clear bits of it.
	if err := unix.Fchownat(int(dir.Fd()), "", d.UID, d.GID, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if err := os.Chmod(fdPath(dir), d.Mode); err != nil {
		return err
	}
	return unix.Renameat2(int(parent.Fd()), making, int(parent.Fd()), name, unix.RENAME_NOREPLACE)
}

// sameDir refuses to change what is there already.
func sameDir(dir *os.File, name string, d activation.Dir) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return err
	}
	if os.FileMode(st.Mode).Perm() != d.Mode {
		return fmt.Errorf("directory %.300q is there with mode %#o, want %#o: %w", name, st.Mode&0o777, d.Mode, errdefs.ErrNotImplemented)
	}
	return nil
}

// imageMax is how large an image is at most, in bytes. It takes no room until it
// is written to.
const imageMax = 1 << 40

// imageHead is how much of an image is about to be written when it is made, if it
// is as long as that, in bytes.
const imageHead = 64 << 20

// makers are the programs that make a file system, with their first arguments
// and the one before a UUID.
var makers = map[string]struct {
	program string
	args    []string
	uuid    []string
}{
	"ext2": {"mkfs.ext2", []string{"-q", "-F"}, []string{"-U", ""}},
	"ext3": {"mkfs.ext3", []string{"-q", "-F"}, []string{"-U", ""}},
	"ext4": {"mkfs.ext4", []string{"-q", "-F"}, []string{"-U", ""}},
	"xfs":  {"mkfs.xfs", []string{"-q"}, []string{"-m", "uuid="}},
}

// makeImage makes a file with a file system in it, which has no name before it
// is whole and on disk. What somebody writes to the image and syncs is as durable
// as its name, so that is synced too.
func makeImage(ctx context.Context, parent *os.File, name string, i activation.Image, freeMin int64) error {
	var st unix.Stat_t
	switch err := unix.Fstatat(int(parent.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG:
		return nil
	case err == nil:
		return fmt.Errorf("image %.300q is not a file: %w", name, errdefs.ErrInvalidArgument)
	case !errors.Is(err, unix.ENOENT):
		return err
	}
	maker, ok := makers[i.FS]
	if !ok || i.Size > imageMax {
		return fmt.Errorf("image of %d bytes with %.20q: %w", i.Size, i.FS, errdefs.ErrInvalidArgument)
	}
	dir, err := os.Open(fdPath(parent))
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	defer dir.Close()
	if err := room(dir, freeMin+min(i.Size, imageHead)); err != nil {
		return err
	}
	program, err := exec.LookPath(maker.program)
	if err != nil {
		return fmt.Errorf("%v: %w", err, errdefs.ErrNotImplemented)
	}
	fd, err := unix.Open(fdPath(parent), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := f.Truncate(i.Size); err != nil {
		return err
	}
	args := slices.Clone(maker.args)
	if i.UUID != "" {
		args = append(args, maker.uuid[0], maker.uuid[1]+i.UUID)
	}
	cmd := exec.CommandContext(ctx, program, append(args, "/proc/self/fd/3")...)
	cmd.ExtraFiles = []*os.File{f}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %.300s", maker.program, err, out)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	// What the program wrote is on disk now, and gone with the file.
	if err := room(dir, freeMin); err != nil {
		return err
	}
	err = unix.Linkat(unix.AT_FDCWD, fdPath(f), int(parent.Fd()), name, unix.AT_SYMLINK_FOLLOW)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("image: %w", err)
	}
	return dir.Sync()
}

// room is [errdefs.ErrResourceExhausted] where less than so many bytes are free.
func room(dir *os.File, least int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < least { //nolint:unconvert // 32 bits elsewhere
		return fmt.Errorf("image: %d bytes of disk left, want %d: %w", free, least, errdefs.ErrResourceExhausted)
	}
	return nil
}
