package snapshotd

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff/difftest"
)

// TestHostileLayers applies the corpus to snapshots. What is beside them, and
// a canary that the layers know the path of, stay as they are.
func TestHostileLayers(t *testing.T) {
	onEach(t, hostileLayers)
}

func hostileLayers(t *testing.T, snapshotter string) {
	canary := makeCanary(t)
	cfg := configOf(t, snapshotter)
	openOnce(t, cfg)
	beside := map[string][]string{}
	for _, dir := range []string{filepath.Dir(cfg.Root), cfg.Root, filepath.Join(cfg.Root, snapshotter)} {
		beside[dir] = namesIn(t, dir)
	}
	before := fingerprint(t, canary)
	intact := func(t *testing.T) {
		t.Helper()
		if after := fingerprint(t, canary); after != before {
			t.Errorf("the canary changed from\n%s\nto\n%s", before, after)
		}
		for dir, names := range beside {
			if diff := cmp.Diff(names, namesIn(t, dir)); diff != "" {
				t.Errorf("%s (-before +after):\n%s", dir, diff)
			}
		}
	}
	difftest.RunHostile(t, canary, intact, func(t *testing.T, blobs content.Stores) difftest.Fixture {
		needs := testNeeds(t)
		needs.Content = blobs
		s := openTest(t, cfg, needs)
		return difftest.Fixture{Services: s.Layers(), Tree: trees{s: s, blobs: blobs, of: snapshotter}.inOrder}
	})
}

// makeCanary makes a directory with something of each kind in it, away from
// any snapshot.
func makeCanary(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "canary-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, err := range []error{
		os.WriteFile(filepath.Join(dir, "file"), []byte("alive"), 0o640),
		os.Mkdir(filepath.Join(dir, "dir"), 0o750),
		os.WriteFile(filepath.Join(dir, "dir", "below"), []byte("alive too"), 0o600),
		os.Symlink("file", filepath.Join(dir, "link")),
		unix.Setxattr(filepath.Join(dir, "file"), "user.canary", []byte("1"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// fingerprint tells everything about the files below dir that can change.
func fingerprint(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&all, "%s %o %d:%d %d %d %v %v", path, st.Mode, st.Uid, st.Gid, st.Nlink, st.Ino, st.Mtim, st.Ctim)
		if d.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&all, " %x", sha256.Sum256(b))
		}
		names := make([]byte, 1000)
		if n, err := unix.Llistxattr(path, names); err == nil {
			fmt.Fprintf(&all, " %q", names[:n])
		}
		all.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Errorf("the canary: %v", err)
	}
	return all.String()
}

func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
