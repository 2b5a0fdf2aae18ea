// Package loop makes block devices of files, for kernels and file systems that
// mount nothing else.
package loop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"

	"golang.org/x/sys/unix"
)

// takeMax is how often another process may be faster to take a device that was
// free.
const takeMax = 100

// Attach makes a loop device of a file. The device ends with its last user: as
// long as nobody else is, that is the file that is returned. By its tag it is
// known again.
func Attach(ctx context.Context, image *os.File, readOnly bool, tag string) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop device: %w", err)
	}
	defer control.Close()
	for range takeMax {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("loop device: %w", err)
		}
		dev, err := configure(fmt.Sprintf("/dev/loop%d", n), image, readOnly, tag)
		if !errors.Is(err, unix.EBUSY) {
			return dev, err
		}
	}
	return nil, fmt.Errorf("loop device: others are faster: %w", unix.EBUSY)
}

func configure(path string, image *os.File, readOnly bool, tag string) (*os.File, error) {
	dev, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop device: %w", err)
	}
	config := unix.LoopConfig{Fd: uint32(image.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
	config.Info.File_name = mark(tag)
	if readOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	if err := unix.IoctlLoopConfigure(int(dev.Fd()), &config); err != nil {
		dev.Close()
		return nil, fmt.Errorf("loop device %s: %w", path, err)
	}
	return dev, nil
}

// mark is the name that a device is given, by which it is known to be ours: the
// end of its tag, which is never used again.
func mark(tag string) (name [unix.LO_NAME_SIZE]byte) {
	copy(name[:unix.LO_NAME_SIZE-1], tag[max(0, len(tag)-unix.LO_NAME_SIZE+1):])
	return name
}

// Keep has a loop device stay when nobody uses it.
func Keep(dev *os.File) error {
	info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
	if err != nil {
		return fmt.Errorf("loop device: %w", err)
	}
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopSetStatus64(int(dev.Fd()), info); err != nil {
		return fmt.Errorf("loop device: %w", err)
	}
	return nil
}

var device = regexp.MustCompile(`^/dev/loop[0-9]{1,9}$`)

// Free ends a loop device as soon as nobody uses it, if it is the one of that
// tag.
func Free(path, tag string) error {
	if !device.MatchString(path) {
		return nil
	}
	dev, err := os.OpenFile(path, os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("loop device: %w", err)
	}
	defer dev.Close()
	info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
	want := mark(tag)
	if errors.Is(err, unix.ENXIO) || err == nil && !bytes.Equal(info.File_name[:], want[:]) {
		return nil // it ended before, and may be somebody else's now
	}
	if err != nil {
		return fmt.Errorf("loop device %s: %w", path, err)
	}
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("loop device %s: %w", path, err)
	}
	return nil
}
