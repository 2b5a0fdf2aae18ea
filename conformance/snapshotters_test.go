package conformance

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRunOnEachSnapshotter imports and runs on every snapshotter, by our own
// client and by a stock ctr, and looks what stays when all is removed.
func TestRunOnEachSnapshotter(t *testing.T) {
	s := startSuite(t)
	s.stop()
	volume := filepath.Join(s.root, "snapshotd", "btrfs")
	unmount, err := mountBtrfs(volume, filepath.Dir(s.root))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.removeContainers()
		s.stop()
		if err := unmount(); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(volume, unix.MNT_DETACH)
		}
	})
	s.start()
	before := mountedIn(t, filepath.Dir(s.root))
	demo := filepath.Join(s.bin, "demo.tar")
	for _, name := range []string{"overlayfs", "native", "btrfs", "erofs"} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			s.ctl("-n", name, "image", "import", "--snapshotter", name, demo)
			if out := s.ctl("-n", name, "run", "--rm", "--snapshotter", name, "demo:latest", "/bin/echo", "hello"); out != "hello\n" {
				t.Errorf("gantryctl run says %q", out)
			}
			if out := s.ctr("-n", name, "run", "--rm", "--snapshotter", name, "demo:latest", "c1", "/bin/echo", "there"); out != "there\n" {
				t.Errorf("ctr run says %q", out)
			}
			s.ctl("-n", name, "run", "-d", "--name", "kept", "--snapshotter", name, "demo:latest", "/bin/counter")
			s.ctl("-n", name, "rm", "-f", "kept")
			// Mounts that were made for a task go when its shim has.
			s.eventually(20*time.Second, "nothing is mounted", func() error {
				if left := mountedIn(t, filepath.Dir(s.root)); !slices.Equal(left, before) {
					return fmt.Errorf("mounted before %q, now %q", before, left)
				}
				return nil
			})
			if out := s.ctl("-n", name, "snapshot", "--snapshotter", name, "ls"); strings.Contains(out, "Active") || !strings.Contains(strings.ToLower(out), "committed") {
				t.Errorf("snapshots left: %s", out)
			}
		})
	}
	s.t = t
}
