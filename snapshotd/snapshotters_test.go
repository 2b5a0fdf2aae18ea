package snapshotd

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/namespace"
)

// tried are the snapshotters that every promise is tested on.
var tried = []struct {
	name string

	// place makes the directory of the snapshotter, if it takes more than that,
	// for the time of the test, out of files in scratch.
	place func(t testing.TB, dir, scratch string)
}{
	{name: Overlayfs},
	{name: "native"},
	{name: "btrfs", place: onBtrfs},
	{name: "erofs"},
}

// onBtrfs mounts an empty btrfs at a directory.
func onBtrfs(t testing.TB, dir, scratch string) {
	t.Helper()
	disk := filepath.Join(scratch, "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 512<<20)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	for _, c := range [][]string{{"mkfs.btrfs", "-q", disk}, {"mount", "-o", "loop", disk, dir}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", c, err, out)
		}
	}
}

// onEach runs a test on each snapshotter.
func onEach(t *testing.T, test func(t *testing.T, snapshotter string)) {
	t.Helper()
	needRoot(t)
	for _, s := range tried {
		t.Run(s.name, func(t *testing.T) { test(t, s.name) })
	}
}

// configOf is testConfig with the place of a snapshotter.
func configOf(t testing.TB, snapshotter string) Config {
	t.Helper()
	cfg := testConfig(t)
	place(t, cfg, snapshotter)
	return cfg
}

// place makes the place of a snapshotter.
func place(t testing.TB, cfg Config, snapshotter string) {
	t.Helper()
	for _, s := range tried {
		if s.name != snapshotter || s.place == nil {
			continue
		}
		dir, scratch := filepath.Join(cfg.Root, snapshotter), filepath.Join(filepath.Dir(cfg.Root), "scratch")
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.MkdirAll(scratch, 0o700)); err != nil {
			t.Fatal(err)
		}
		s.place(t, dir, scratch)
	}
}

// inOf is in for any snapshotter.
func inOf(t testing.TB, s *Store, scope namespace.Scope, snapshotter string) snapshots {
	t.Helper()
	sn, err := s.In(scope, snapshotter)
	if err != nil {
		t.Fatalf("In: %v (%v)", err, s.skipped[snapshotter])
	}
	if n, ok := sn.(outside); ok {
		return n.snapshots
	}
	return sn.(snapshots)
}
