package kv

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// releaseMin is free space that Badger needs to go on at all: a log, the
	// table made of it, and the compaction that may follow. Its files are
	// sparse and mapped; a write that finds no block is SIGBUS.
	releaseMin = 16 << 20

	ballastName = "ballast"
	ballastSize = 2 * releaseMin
)

// prepare makes a directory fit to be opened: it exists, only its owner can
// enter it, it holds a database or nothing, and no file in it is half made or
// damaged.
func prepare(o *Options, sp *space) error {
	dir := o.Dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	// Another process may be just making the file that looks half made. Badger
	// takes the same lock when it opens.
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if err := wantDatabase(entries); err != nil {
		return err
	}
	if err := sweep(dir, entries); err != nil {
		return err
	}
	if err := checkFiles(o); err != nil {
		return err
	}
	return sp.look(true).refuse(true)
}

// beforeManifest are the files that a database can have before it is one.
var beforeManifest = []string{"LOCK", "MANIFEST-REWRITE", "KEYREGISTRY", "REWRITE-KEYREGISTRY", ballastName, "lost+found"}

// Exists says whether there is a database in a directory, or anything that is
// left of one.
func Exists(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		return e.Name() == "MANIFEST" || isOurs(e.Name())
	}), err
}

// isOurs says whether only a database that was complete has a file of the name.
func isOurs(name string) bool {
	ext := filepath.Ext(name)
	return name == witnessName || ext == ".sst" || ext == ".mem" || ext == ".vlog"
}

func wantDatabase(entries []os.DirEntry) error {
	var other, ours string
	for _, e := range entries {
		if e.Name() == "MANIFEST" {
			return nil
		}
		if isOurs(e.Name()) {
			ours = e.Name()
		} else if !slices.Contains(beforeManifest, e.Name()) {
			other = e.Name()
		}
	}
	if ours != "" {
		return fmt.Errorf("there is %q, and the MANIFEST is gone: %w", ours, errdefs.ErrDataLoss)
	}
	if other != "" {
		return fmt.Errorf("not a database, and not empty: there is %q: %w", other, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// sweep removes the log files that hold nothing. Badger makes one empty and
// then sizes it, and truncates one before it removes it; after a kill in
// between it does not open.
func sweep(dir string, entries []os.DirEntry) error {
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext != ".mem" && ext != ".vlog" || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.Size() == 0 {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// inUse tells the error of a lock that somebody else has.
func inUse(err error) bool {
	return errors.Is(err, unix.EWOULDBLOCK) || err != nil && strings.Contains(err.Error(), "Cannot acquire directory lock")
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// A space watches the disk and keeps the ballast: a file that is let go when
// the disk is full, so that what frees space can still be written. It is used
// by one goroutine at a time.
type space struct {
	dir     string
	freeMin int64
	log     *slog.Logger
	low     bool // it was said
	ballast bool // is there, or cannot be
	wal     reserved
}

// A room is what was free when it was looked at.
type room struct {
	dir             string
	free, freeMin   int64
	update, release bool // are possible
	reserved        bool // that is, into the log that there is
}

// look asks the file system. If something is to be let through that frees space
// it drops the ballast where there is no other way: others may take what it
// leaves.
func (s *space) look(release bool) room {
	free, usable, err := s.free()
	if err != nil {
		// The writes themselves will say what is wrong.
		return room{dir: s.dir, freeMin: s.freeMin, update: true, release: true}
	}
	switch {
	case release && usable < releaseMin && s.drop():
		free, usable, _ = s.free()
	case !s.ballast && free >= s.freeMin+2*ballastSize:
		s.make()
	}
	s.say(free)
	return room{dir: s.dir, free: free, freeMin: s.freeMin, update: free >= s.freeMin, release: usable >= releaseMin}
}

// lookAhead is look for a group of updates, which are written to the log and
// nowhere else, unless it becomes full: when the disk is getting full the log is
// given the room that it may need.
func (s *space) lookAhead(release bool) room {
	if free, usable, err := s.free(); err == nil && free < 2*s.freeMin {
		if s.wal.reserve(s.dir); usable < releaseMin && s.wal.fits(size{}) {
			s.say(free)
			return room{dir: s.dir, free: free, freeMin: s.freeMin, release: true, reserved: true}
		}
	}
	return s.look(release)
}

func (s *space) say(free int64) {
	if low := free < s.freeMin; low != s.low {
		s.low = low
		if low {
			s.log.Warn("disk is nearly full: only what frees space goes on", "dir", s.dir, "free", free, "want", s.freeMin)
		} else {
			s.log.Info("disk has room again", "dir", s.dir, "free", free)
		}
	}
}

// free returns the bytes that anybody may still use and those that this process
// may: root has a reserve on some file systems.
func (s *space) free() (free, usable int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, 0, err
	}
	free = int64(st.Bavail) * st.Bsize
	usable = free
	if os.Geteuid() == 0 {
		usable = int64(st.Bfree) * st.Bsize
	}
	return free, usable, nil
}

func (s *space) drop() bool {
	s.ballast = false
	err := os.Remove(filepath.Join(s.dir, ballastName))
	if err == nil {
		s.log.Warn("disk is full: let go of the ballast", "dir", s.dir)
	}
	return err == nil
}

// make makes the ballast if it is missing. Without it, as on a file system that
// cannot reserve or that is memory, a full disk stops deletes too; nothing else
// is different.
func (s *space) make() {
	s.ballast = true
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil || st.Type == unix.TMPFS_MAGIC {
		return
	}
	f, err := os.OpenFile(filepath.Join(s.dir, ballastName), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, ballastSize); err != nil {
		s.log.Debug("no ballast", "dir", s.dir, "err", err)
		os.Remove(f.Name())
	}
}

func (r room) refuse(release bool) error {
	if release && r.release || !release && r.update {
		return nil
	}
	return fmt.Errorf("disk of %s is nearly full, %d bytes are free and %d are wanted: %w", r.dir, r.free, r.freeMin, errdefs.ErrResourceExhausted)
}
