package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestStockCtrUserNamespaces runs containers with users of their own, in each way
// that ctr has to show them files as theirs: by labels, which overlayfs and
// erofs obey, and by a copy of the image in which each file has changed its owner. With
// labels and a snapshotter that does not obey them, ctr makes that copy.
func TestStockCtrUserNamespaces(t *testing.T) {
	s := startSuite(t)
	// The container's users are nobody here: they pass through what all may.
	if err := os.Chmod(filepath.Dir(s.root), 0o711); err != nil {
		t.Fatal(err)
	}
	image := s.importDemo()
	if out := s.ctr("plugins", "ls", "-d", "id==overlayfs"); !strings.Contains(out, "remap-ids") {
		t.Fatalf("the capability remap-ids is missing:\n%s", out)
	}
	for _, how := range [][]string{
		{"--snapshotter", "overlayfs", "--remap-labels"},
		{"--snapshotter", "overlayfs"},
		{"--snapshotter", "erofs", "--remap-labels"},
		{"--snapshotter", "native", "--remap-labels"},
		{"--snapshotter", "native"},
	} {
		t.Run(strings.Join(how, " "), func(t *testing.T) {
			id := strings.ReplaceAll(strings.Join(how[1:], ""), "--", "-")
			args := append([]string{"run", "-d", "--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"}, how...)
			s.ctr(append(args, "--cwd", "/made/by/root", image, id, "/bin/sleep", "600")...)
			if out := s.ctr("tasks", "exec", "--exec-id", "e", id, "/bin/id"); !strings.HasPrefix(out, "uid=0 gid=0 ") {
				t.Errorf("id prints %q", out)
			}
			root := fmt.Sprintf("/proc/%d/root", s.pidOf(id))
			for _, path := range []string{"", "/bin/id", "/made/by"} {
				info, err := os.Stat(root + path)
				if err != nil {
					t.Fatal(err)
				}
				if st := info.Sys().(*syscall.Stat_t); st.Uid != 100000 || st.Gid != 200000 {
					t.Errorf("%q belongs to %d:%d", path, st.Uid, st.Gid)
				}
			}
			s.ctr("tasks", "rm", "-f", id)
			s.ctr("containers", "rm", id)
		})
	}
	t.Run("mappings that are none are refused", func(t *testing.T) {
		for _, bad := range []string{"0:0:4294967294", "5:100000:1"} {
			out, err := s.tryCtr("run", "--rm", "--remap-labels", "--uidmap", bad, "--gidmap", bad, image, "bad", "/bin/true")
			if err == nil || !strings.Contains(err.Error(), "invalid argument") {
				t.Errorf("run with %s: %q, %v", bad, out, err)
			}
			_, _ = s.tryCtr("containers", "rm", "bad")
		}
	})
}

// pidOf is the first process of a container.
func (s *suite) pidOf(id string) (pid int) {
	s.t.Helper()
	for line := range strings.Lines(s.ctr("tasks", "ls")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == id {
			_, _ = fmt.Sscan(f[1], &pid)
		}
	}
	return pid
}
