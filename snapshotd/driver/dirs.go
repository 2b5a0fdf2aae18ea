package driver

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Dirs are the trees of a driver that keeps each in a directory of its own,
// called by its id.
type Dirs struct {
	Dir  string // absolute and clean
	Disk Disk
	Log  *slog.Logger
}

// Own makes the directory, and those above it up to the root of the driver, the
// daemon's own.
func (d Dirs) Own(root string) error {
	for _, dir := range []string{root, d.Dir} {
		if err := OwnDir(dir); err != nil {
			return err
		}
	}
	spread(d.Dir)
	return nil
}

// Path is the directory of one snapshot; with parts, something in it.
func (d Dirs) Path(id uint64, parts ...string) string {
	return filepath.Join(d.Dir, d.Rel(id, parts...))
}

// Rel is Path relative to Dir.
func (d Dirs) Rel(id uint64, parts ...string) string {
	return filepath.Join(append([]string{strconv.FormatUint(id, 10)}, parts...)...)
}

// Open opens a directory of a snapshot, for paths only.
func (d Dirs) Open(id uint64, parts ...string) (*os.File, error) {
	path := d.Path(id, parts...)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Of returns the snapshot that path is in, and where in it. A path that is not
// spelled as Path spells it is of none.
func (d Dirs) Of(path string) (id uint64, rest string, ok bool) {
	rel, ok := strings.CutPrefix(path, d.Dir+"/")
	if !ok {
		return 0, "", false
	}
	name, rest, _ := strings.Cut(rel, "/")
	id, ok = parseID(name)
	return id, rest, ok
}

// parseID reads what strconv.FormatUint wrote, and nothing else.
func parseID(name string) (uint64, bool) {
	id, err := strconv.ParseUint(name, 10, 64)
	return id, err == nil && strconv.FormatUint(id, 10) == name
}

// IDs returns the snapshots that have a directory, whole or not.
func (d Dirs) IDs() ([]uint64, error) {
	entries, err := os.ReadDir(d.Dir)
	if err != nil {
		return nil, err
	}
	ids := make([]uint64, 0, len(entries))
	for _, e := range entries {
		id, ok := parseID(e.Name())
		if !ok {
			d.Log.Warn("something else is among the snapshots", "dir", d.Dir, "name", e.Name())
			continue
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// Has tells whether a directory of a snapshot is there.
func (d Dirs) Has(id uint64, parts ...string) bool {
	fi, err := os.Lstat(d.Path(id, parts...))
	return err == nil && fi.IsDir()
}

// Remove removes the directory of a snapshot.
func (d Dirs) Remove(ctx context.Context, id uint64) error {
	return d.Disk.RemoveTree(ctx, d.Path(id))
}
