package contentd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The kernel knows whether a file can be written by anybody: it counts the
// descriptors that are open for writing, in whatever process, with what is
// mapped through them and what is in flight in a socket. It grants a read lease
// only while there are none, and who opens the file for writing then waits until
// the lease is given up or, after a time, broken. So a lease that was held from
// before the first byte was read until after the last says that the bytes are
// those that were read.

// errWritable says that somebody can write a file.
var errWritable = errors.New("somebody has the file open to write")

// seal opens a file for reading and takes a lease on it. It is errWritable if
// the kernel does not grant one, or if somebody has a lease of his own, for whom
// nobody waits.
func seal(name string) (*os.File, error) {
	f, err := openNow(name)
	if err != nil {
		return nil, err
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	if errors.Is(err, unix.EAGAIN) {
		err = errWritable
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lease: %w", err), f.Close())
	}
	return f, nil
}

func openNow(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errWritable
	}
	return f, err
}

// sealed is errWritable if the lease of f is not held any more, or is being
// broken.
func sealed(f *os.File) error {
	lease, err := unix.FcntlInt(f.Fd(), unix.F_GETLEASE, 0)
	if err == nil && lease != unix.F_RDLCK {
		err = errWritable
	}
	return err
}

// canSeal says whether the file system of dir has leases that tell. It tries,
// with a file that has no name.
func canSeal(dir string) error {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, ingestMode)
	if err != nil {
		return err
	}
	name := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	again := func() (*os.File, error) {
		r, err := os.Open(name) // which is a link
		if err != nil {
			return nil, err
		}
		_, err = unix.FcntlInt(r.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
		return r, err
	}
	r, err := again()
	if r != nil {
		defer r.Close()
	}
	if err = errors.Join(err, f.Close()); !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("a lease on a file that is open to write: got %v, want EAGAIN", err)
	}
	_, err = unix.FcntlInt(r.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	return err
}

// wholeFile is [errdefs.ErrFailedPrecondition] if a file has holes before its
// end. They would be bytes that nobody wrote, and could be more of them than
// anybody can read.
func wholeFile(name string) error {
	f, err := openNow(name)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.Size() == 0 {
		return err
	}
	hole, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE)
	if err == nil && hole < fi.Size() {
		err = fmt.Errorf("a file of %d bytes has a hole at %d: %w", fi.Size(), hole, errdefs.ErrFailedPrecondition)
	}
	return err
}

const (
	// sealTime is how long a file may still be open for writing when nobody
	// should: a descriptor is closed a moment after its owner said so, or
	// ended, or has forked.
	sealTime = time.Second

	sealPauseMin, sealPauseMax = time.Millisecond, 50 * time.Millisecond
)

// patiently calls f until its error is another than errWritable, or the time is
// over.
func (s *Store) patiently(ctx context.Context, f func() error) error {
	over := time.Now().Add(s.sealTime)
	for pause := sealPauseMin; ; pause = min(2*pause, sealPauseMax) {
		err := f()
		if !errors.Is(err, errWritable) || time.Now().After(over) {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}
