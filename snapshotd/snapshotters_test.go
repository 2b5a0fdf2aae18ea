package snapshotd

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gantryd/gantry/services/namespace"
)

// tried are the snapshotters that every promise is tested on.
var tried = []struct {
	name string

	// place makes the directory of the snapshotter, if it takes more than that,
	// for the time of the test.
	place func(t testing.TB, dir string)
}{
	{name: Overlayfs},
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
	for _, s := range tried {
		if s.name != snapshotter || s.place == nil {
			continue
		}
		dir := filepath.Join(cfg.Root, snapshotter)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		s.place(t, dir)
	}
	return cfg
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
