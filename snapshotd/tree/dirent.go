package tree

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// scanSize is how much of a directory is read at once, in bytes.
const scanSize = 32 << 10

// A scanner reads the names in a directory, in the file system's order.
type scanner struct {
	dir  int
	buf  []byte
	rest []byte
	at   int64 // where a scan goes on that begins after the last name
}

func newScanner(dir int) *scanner { return &scanner{dir: dir, buf: make([]byte, scanSize)} }

// next returns a name and whether it is a directory's; an empty name is the
// end.
func (s *scanner) next() (name string, isDir bool, err error) {
	for {
		for len(s.rest) == 0 {
			n, err := unix.ReadDirent(s.dir, s.buf)
			if n <= 0 || err != nil {
				return "", false, err
			}
			s.rest = s.buf[:n]
		}
		const header = int(unsafe.Offsetof(unix.Dirent{}.Name))
		size := binary.NativeEndian.Uint16(s.rest[unsafe.Offsetof(unix.Dirent{}.Reclen):])
		s.at = int64(binary.NativeEndian.Uint64(s.rest[unsafe.Offsetof(unix.Dirent{}.Off):])) //nolint:gosec // as the kernel says it
		kind := s.rest[unsafe.Offsetof(unix.Dirent{}.Type)]
		raw := s.rest[header:size]
		s.rest = s.rest[size:]
		if i := bytes.IndexByte(raw, 0); i >= 0 {
			raw = raw[:i]
		}
		if name = string(raw); name == "." || name == ".." {
			continue
		}
		if kind == unix.DT_UNKNOWN {
			var st unix.Stat_t
			if err := unix.Fstatat(s.dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return "", false, err
			}
			return name, st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
		}
		return name, kind == unix.DT_DIR, nil
	}
}

// A Budget is how much memory is left for what is remembered of a tree, in bytes:
// how many names it has, whoever filled it decided.
type Budget struct{ left int64 }

// NewBudget has so many bytes.
func NewBudget(size int64) *Budget { return &Budget{left: size} }

// Take is [errdefs.ErrResourceExhausted] if there is not so much left.
func (b *Budget) Take(n int64) error {
	if b.left -= n; b.left < 0 {
		return fmt.Errorf("too many names in a directory, or files with several names, to remember at once: %w", errdefs.ErrResourceExhausted)
	}
	return nil
}

// Give gives back what was taken.
func (b *Budget) Give(n int64) { b.left += n }

// SizeOf is about how much memory a name takes that is kept, with what is noted of
// it.
func SizeOf(name string) int64 { return int64(len(name)) + 64 }

// SizeOfAll is SizeOf of each.
func SizeOfAll(names []string) (n int64) {
	for _, name := range names {
		n += SizeOf(name)
	}
	return n
}

// Names returns what is in a directory that is open for reading, and takes it from
// the budget.
func Names(dir int, b *Budget) ([]string, error) {
	if _, err := unix.Seek(dir, 0, 0); err != nil {
		return nil, err
	}
	var names []string
	for s := newScanner(dir); ; {
		name, _, err := s.next()
		if name == "" || err != nil {
			return names, err
		}
		if err := b.Take(SizeOf(name)); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
}

// Empty tells whether a directory has nothing in it.
func Empty(dir int) (bool, error) {
	fd, err := Reopen(dir)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	name, _, err := newScanner(fd).next()
	return name == "" && err == nil, err
}
