package mounter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A Place is where in a snapshot a path is.
type Place struct {
	Dir   *os.File // the snapshot's directory, for paths only; whoever gets it closes it
	Rest  string   // below it; empty is Dir itself
	Write bool     // the snapshot is active
	Image bool     // Rest is beside the tree, where only the daemon writes
}

// Places says where paths are.
type Places interface {
	// Place returns the place of a clean path: [errdefs.ErrNotImplemented] if
	// it is where no snapshots are, and [errdefs.ErrInvalidArgument] if it is
	// not in a snapshot of the namespace.
	Place(ns, path string) (Place, error)
}

// A use is what somebody wants of a path.
type use struct {
	write bool
	image bool // a file, else a directory
}

// open opens what a path means to this activation: a directory for paths only,
// and an image to be read or written.
func (j *job) open(path string, u use) (*os.File, error) {
	if !filepath.IsAbs(path) || path != filepath.Clean(path) {
		return nil, fmt.Errorf("path %.300q is not absolute and clean: %w", path, errdefs.ErrInvalidArgument)
	}
	p, err := j.place(path)
	if err != nil {
		return nil, err
	}
	defer p.Dir.Close()
	if u.write && !p.Write {
		return nil, fmt.Errorf("path %.300q is not of an active snapshot: %w", path, errdefs.ErrInvalidArgument)
	}
	if u.image && !p.Image {
		return nil, fmt.Errorf("path %.300q is not beside the tree of a snapshot: %w", path, errdefs.ErrInvalidArgument)
	}
	f, err := p.open(u)
	if err != nil {
		return nil, fmt.Errorf("path %.300q: %v: %w", path, err, errdefs.ErrInvalidArgument)
	}
	return f, nil
}

// place is of a path below an earlier mount, or in a snapshot.
func (j *job) place(path string) (Place, error) {
	i, rest, ok := j.own(path)
	if !ok {
		return j.s.needs.Places.Place(j.ns, path)
	}
	if i >= len(j.made) || j.devices[i] != "" {
		return Place{}, fmt.Errorf("path %.300q is in none of %d mounts: %w", path, len(j.made), errdefs.ErrInvalidArgument)
	}
	dir, err := openDir(j.point(i))
	if err != nil {
		return Place{}, err
	}
	return Place{Dir: dir, Rest: rest, Write: j.writes[i]}, nil
}

// own reads a path as that of a mount of this activation, or below one.
func (j *job) own(path string) (i int, rest string, ok bool) {
	rest, ok = strings.CutPrefix(path, j.dir+"/")
	number, rest, _ := strings.Cut(rest, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	return int(n), rest, ok && err == nil
}

// openDir opens a directory whose parents are the daemon's own.
func openDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func (p Place) open(u use) (*os.File, error) {
	if !u.image {
		return beneath(p.Dir, p.Rest, unix.O_DIRECTORY)
	}
	path, err := beneath(p.Dir, p.Rest, 0)
	if err != nil {
		return nil, err
	}
	defer path.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(path.Fd()), &st); err != nil {
		return nil, err
	}
	// Only what is a file is opened: opening a pipe waits, and opening a device
	// does what it does.
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("not a file")
	}
	flags := os.O_RDONLY
	if u.write {
		flags = os.O_RDWR
	}
	return os.OpenFile(fdPath(path), flags, 0)
}

// Beneath opens a path for paths only, from dir and never out of it: through no
// link and into no other mount.
func Beneath(dir *os.File, rest string) (*os.File, error) { return beneath(dir, rest, 0) }

// againMax is how often the kernel may say that something was renamed meanwhile.
const againMax = 100

func beneath(dir *os.File, rest string, flags uint64) (*os.File, error) {
	if rest == "" {
		rest = "."
	}
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW | flags,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	var err error
	for range againMax {
		var fd int
		if fd, err = unix.Openat2(int(dir.Fd()), rest, &how); err == nil {
			return os.NewFile(uintptr(fd), filepath.Join(dir.Name(), rest)), nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return nil, err
}

// fdPath is a name of an open file in this process.
func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
