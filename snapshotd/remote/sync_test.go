package remote

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
)

// An at describes a bind mount of one path, whatever is asked for.
type at struct {
	snapshot.Store
	path string
}

func (a at) In(namespace.Scope, string) (snapshot.Store, error) { return a, nil }

func (a at) Mounts(context.Context, string) ([]mount.Mount, error) {
	return []mount.Mount{{Type: "bind", Source: a.path, Options: []string{"rbind", "rw"}}}, nil
}

// TestSyncOpensNothingButDirectories is told of a pipe, whose other end nobody
// opens.
func TestSyncOpensNothingButDirectories(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	sync := func(path string) error {
		return New("far", at{path: path}, snapshot.Traits{}, kernel.New()).Sync(t.Context(), driver.Snapshot{Kind: snapshot.Active})
	}
	if err := sync(pipe); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("Sync of a pipe = %v, want %v", err, unix.ENOTDIR)
	}
	if err := sync(dir); err != nil {
		t.Errorf("Sync of a directory: %v", err)
	}
}
