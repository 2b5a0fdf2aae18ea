package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/tree"
)

const (
	// pathMax is the longest name of an entry, in bytes; the kernel's.
	pathMax = 4095

	// holesMax is how much longer than the stream its sparse files may be, in
	// bytes in all: nothing else makes much work of few bytes.
	holesMax = 16 << 30

	// spaceEntries and spaceBytes are after how many entries, or bytes, the
	// free disk is looked at. As many bytes as the finisher holds may not have
	// been written yet.
	spaceEntries = 1024
	spaceBytes   = Overshoot - pieceCount*pieceSize
)

// Overshoot is by how much a layer may miss [Target].FreeMin, in bytes.
const Overshoot = 4 << 20

// An extractor turns a stream into files.
type extractor struct {
	ctx    context.Context
	stream *stream
	target Target

	stacked bool     // the tree is mounted over layers below
	root    *os.File // the tree as a container sees it
	own     int
	dirs    dirCache
	made    made

	whiteouts whiteouts
	times     dirTimes
	finisher  *finisher

	entries int64
	dropped atomic.Int64
	holes   int64 // bytes of files that were not in the stream
	written int64 // bytes since the free disk was looked at
	looked  int64 // entries when it was
}

func newExtractor(ctx context.Context, s *stream, t Target) (*extractor, error) {
	x := &extractor{ctx: ctx, stream: s, target: t, stacked: t.Root != nil, own: int(t.Own.Fd())}
	if t.Root == nil {
		x.target.Root = func() (*os.File, error) { return reopen(t.Own) }
	}
	empty, err := tree.Empty(x.own)
	if err != nil {
		return nil, err
	}
	x.made.off = empty
	if t.Detached {
		if err := x.markRoot(empty); err != nil {
			return nil, err
		}
	}
	if err := x.space(); err != nil {
		return nil, err
	}
	if err := x.open(); err != nil {
		return nil, err
	}
	x.finisher = startFinisher(x)
	return x, nil
}

func reopen(dir *os.File) (*os.File, error) {
	fd, err := tree.Reopen(int(dir.Fd()))
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), dir.Name()), nil
}

// open opens the tree, at first and after whiteouts.
func (x *extractor) open() error {
	root, err := x.target.Root()
	if err != nil {
		return err
	}
	x.root = root
	x.dirs.open(int(root.Fd()), x.implicit)
	return nil
}

// close gives everything back; more than once is fine.
func (x *extractor) close() {
	if x.finisher != nil {
		x.finisher.stop()
	}
	x.dirs.close()
	if x.root != nil {
		x.root.Close()
		x.root = nil
	}
}

// run extracts the stream.
func (x *extractor) run() error {
	tr := tar.NewReader(x.stream)
	for {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return x.archive(err)
		}
		x.entries++
		if err := x.entry(hdr, tr); err != nil {
			return fmt.Errorf("entry %.300q: %w", hdr.Name, err)
		}
		if x.times.full() || x.whiteouts.full() {
			if err := x.settle(); err != nil {
				return err
			}
			if err := x.open(); err != nil {
				return err
			}
		}
	}
	return x.settle()
}

// settle finishes what waits for the end, or for a list to be long: files, then
// the times of directories, then, with the tree closed, whiteouts.
func (x *extractor) settle() error {
	if err := x.finisher.wait(); err != nil {
		return err
	}
	if err := x.times.set(int(x.root.Fd())); err != nil {
		return kind(err)
	}
	x.dirs.close()
	if err := x.root.Close(); err != nil {
		return err
	}
	x.root = nil
	return kind(x.hide())
}

// archive explains an error of the tar reader: the stream's own, or a header
// that is none.
func (x *extractor) archive(err error) error {
	if e := x.stream.err; e != nil && !errors.Is(e, io.EOF) && len(x.stream.current) == 0 {
		return e
	}
	return fmt.Errorf("archive: %w: %w", err, errdefs.ErrInvalidArgument)
}

// entry extracts one entry.
func (x *extractor) entry(hdr *tar.Header, body io.Reader) error {
	if x.written >= spaceBytes || x.entries-x.looked >= spaceEntries {
		if err := x.space(); err != nil {
			return err
		}
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(hdr.Name)
	if err != nil {
		return err
	}
	dir, base := split(name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return kind(x.whiteout(dir, base))
	}
	a, err := attributesOf(hdr)
	if err != nil {
		return err
	}
	return kind(x.create(dir, base, hdr, a, body))
}

// space is [errdefs.ErrResourceExhausted] if the disk is too full to go on.
func (x *extractor) space() error {
	x.written, x.looked = 0, x.entries
	var st unix.Statfs_t
	if err := unix.Fstatfs(x.own, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < x.target.FreeMin { //nolint:unconvert // 32 bits elsewhere
		return fmt.Errorf("%d bytes of disk left, of which %d are reserved: %w", free, x.target.FreeMin, errdefs.ErrResourceExhausted)
	}
	return nil
}

// clean returns the name of an entry relative to the root, "" for the root. A
// name that climbs out of the root is [errdefs.ErrInvalidArgument], even if it
// comes back.
func clean(name string) (string, error) {
	if len(name) > pathMax {
		return "", fmt.Errorf("name of %d bytes: %w", len(name), errdefs.ErrInvalidArgument)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("NUL in the name: %w", errdefs.ErrInvalidArgument)
	}
	var parts []string
	for p := range strings.SplitSeq(name, "/") {
		switch p {
		case "", ".":
		case "..":
			if len(parts) == 0 {
				return "", fmt.Errorf("name climbs out of the root: %w", errdefs.ErrInvalidArgument)
			}
			parts = parts[:len(parts)-1]
		default:
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, "/"), nil
}

func split(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	return name[:max(i, 0)], name[i+1:]
}

// kind gives a kind to the errors of the kernel that a layer can cause.
func kind(err error) error {
	var errno unix.Errno
	if err == nil || !errors.As(err, &errno) || hasKind(err) {
		return err
	}
	switch errno {
	case unix.ENOSPC, unix.EDQUOT:
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	case unix.ELOOP, unix.ENOTDIR, unix.ENAMETOOLONG, unix.EXDEV, unix.ENOENT,
		unix.EMLINK, unix.EINVAL, unix.EILSEQ, unix.EISDIR, unix.EFBIG:
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}

func hasKind(err error) bool {
	return errors.Is(err, errdefs.ErrInvalidArgument) || errors.Is(err, errdefs.ErrResourceExhausted)
}
