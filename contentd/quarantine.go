package contentd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
)

func (s *Store) quarantined() string { return filepath.Join(s.cfg.Root, "quarantine") }

// quarantineName begins the names of files that were a blob's.
func (s *Store) quarantineName(d digest.Digest) string {
	return filepath.Join(s.quarantined(), fmt.Sprintf("%s-%s-", d.Algorithm(), d.Encoded()))
}

// errCorrupt says that the bytes of a blob do not hash to its name.
var errCorrupt = errors.New("its bytes are corrupt and in quarantine")

// quarantine takes the file of a blob away whose bytes are wrong, and returns
// where it is now, or "" if the blob has another file by now. The records stay:
// without a file the blob is absent for everybody, now and after a restart, and
// the next commit of the bytes gives it one. So there is nothing to be done in
// one with the rename, and a crash leaves the blob here or there.
func (s *Store) quarantine(d digest.Digest, f *os.File) (string, error) {
	defer s.lock(d)()
	was, err := f.Stat()
	if err != nil {
		return "", err
	}
	from := s.path(d)
	is, err := os.Lstat(from)
	if err != nil || !os.SameFile(was, is) {
		return "", nil
	}
	to := s.quarantineName(d) + newFile()[:8]
	// Absent first: nobody opens it between the rename and the note.
	s.lose(d, errCorrupt)
	if err := s.disk.Rename(from, to); err != nil {
		return "", kind(err)
	}
	return to, kind(errors.Join(s.disk.SyncDir(s.quarantined()), s.disk.SyncDir(filepath.Dir(from))))
}

// quarantineUsage counts what is there.
func (s *Store) quarantineUsage() (count, bytes int64, err error) {
	names, err := os.ReadDir(s.quarantined())
	if err != nil {
		return 0, 0, err
	}
	for _, n := range names {
		if fi, err := n.Info(); err == nil && strings.Contains(n.Name(), "-") {
			count++
			bytes += fi.Size()
		}
	}
	return count, bytes, nil
}
