package tree

import (
	"bytes"
	"encoding/binary"
	"unsafe"

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

// Names returns what is in a directory that is open for reading.
func Names(dir int) ([]string, error) {
	if _, err := unix.Seek(dir, 0, 0); err != nil {
		return nil, err
	}
	var names []string
	for s := newScanner(dir); ; {
		name, _, err := s.next()
		if name == "" || err != nil {
			return names, err
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
