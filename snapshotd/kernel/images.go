package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/detached"
	"github.com/gantryd/gantry/snapshotd/loop"
)

// stackImages makes an overlay whose layers below are images.
func (k Linux) stackImages(o Overlay) (*os.File, error) {
	if !k.old.Load() && !k.oldImages.Load() {
		f, err := o.detachedImages()
		if !errors.Is(err, errOldKernel) {
			return f, err
		}
		k.oldImages.Store(true)
	}
	if !o.IDs.IsZero() {
		return nil, fmt.Errorf("images with other ids: %w", errors.ErrUnsupported)
	}
	return detached.Apart(o.mountImagesHere)
}

// detachedImages mounts each image nowhere, and the overlay over that.
func (o Overlay) detachedImages() (*os.File, error) {
	images := make([]*os.File, 0, len(o.Images))
	defer func() {
		for _, f := range images {
			f.Close() // the overlay has its own
		}
	}()
	for _, i := range o.Images {
		f, err := mountImage(filepath.Join(o.Dir, i))
		if err != nil {
			return nil, err
		}
		images = append(images, f)
		if err := setIDs(f, o.IDs, false); err != nil {
			return nil, err
		}
	}
	if o.oneImage() {
		f := images[0]
		images = nil
		return f, nil
	}
	f, err := o.stack(images)
	if errors.Is(err, unix.EINVAL) {
		// Before 6.15 layers have to be mounted somewhere.
		return nil, errOldKernel
	}
	return f, err
}

func (o Overlay) oneImage() bool { return len(o.Images) == 1 && len(o.Lower) == 0 && o.Upper == "" }

// addLayer adds a directory, which since 6.13 may be named by its descriptor.
func addLayer(fs, dir int) error {
	err := unix.FsconfigSetFd(fs, "lowerdir+", dir)
	if errors.Is(err, unix.EINVAL) {
		return unix.FsconfigSetString(fs, "lowerdir+", "/proc/self/fd/"+strconv.Itoa(dir))
	}
	return err
}

// imageAttrs are how images are mounted: nobody is to use what they contain in
// any other way than by a container's own mount.
const imageAttrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID

// mountImage mounts an image nowhere, by its file or else by a loop device.
func mountImage(path string) (*os.File, error) {
	f, err := mountSource(path)
	if !errors.Is(err, unix.ENOTBLK) {
		return f, err
	}
	dev, err := loopOf(path)
	if err != nil {
		return nil, err
	}
	defer dev.Close() // the mount has its own
	return mountSource(dev.Name())
}

func mountSource(source string) (*os.File, error) {
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) {
		return nil, errOldKernel
	}
	if err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", source); err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("erofs: %w%s", err, said(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, imageAttrs)
	if err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	return os.NewFile(uintptr(fd), source), nil
}

// MountsFiles tells whether the kernel mounts an image by the file that it is
// in (since 6.12), and not only by a block device.
func MountsFiles(image string) bool {
	f, err := mountSource(image)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// mountImagesHere mounts in the namespace that the calling thread is alone in:
// each image over the directory that its file is in.
func (o Overlay) mountImagesHere() (*os.File, error) {
	for _, i := range o.Images {
		dir := filepath.Dir(i)
		if err := mountOver(filepath.Join(o.Dir, i), filepath.Join(o.Dir, dir)); err != nil {
			return nil, err
		}
		o.Lower = append(slices.Clip(o.Lower), dir)
	}
	if len(o.Lower) > 1 || o.Upper != "" {
		return o.mountIn()
	}
	dir := filepath.Join(o.Dir, o.Lower[0])
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	return os.NewFile(uintptr(fd), dir), nil
}

func mountOver(image, dir string) error {
	const flags = unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID
	err := unix.Mount(image, dir, "erofs", flags, "")
	if errors.Is(err, unix.ENOTBLK) {
		var dev *os.File
		if dev, err = loopOf(image); err != nil {
			return err
		}
		defer dev.Close() // the mount has its own
		err = unix.Mount(dev.Name(), dir, "erofs", flags, "")
	}
	if err != nil {
		return fmt.Errorf("erofs: %w", err)
	}
	return nil
}

// loopOf makes a device of an image, to be read. It goes when nobody has it open
// or mounted.
func loopOf(image string) (*os.File, error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return loop.Attach(context.Background(), f, true, image)
}
