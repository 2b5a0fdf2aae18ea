package detached

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/idmap"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root mounts")
	}
}

func users(t *testing.T, uids, gids string) *os.File {
	t.Helper()
	m, err := idmap.Parse(uids, gids)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Users(m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func owner(t *testing.T, dir *os.File, name string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH); err != nil {
		t.Fatalf("stat %q: %v", name, err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// TestOverlay looks at both ways to make it: what is below has the container's
// ids, what is above those of the host, and nothing is mounted anywhere.
func TestOverlay(t *testing.T) {
	needRoot(t)
	before := mountinfo(t)
	for name, make := range map[string]func(lower, options []string, users *os.File) (*os.File, error){
		"new": overlay,
		"old": func(lower, options []string, users *os.File) (*os.File, error) {
			return Apart(func() (*os.File, error) { return overlayHere(lower, options, users) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, d := range []string{"1/fs", "2/fs", "3/fs", "3/work"} {
				if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for path, uid := range map[string]int{"1/fs/root": 0, "2/fs/user": 7, "2/fs/nobody": 70000} {
				if err := os.WriteFile(filepath.Join(dir, path), nil, 0o644); err != nil {
					t.Fatal(err)
				}
				if err := os.Lchown(filepath.Join(dir, path), uid, uid); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Lchown(filepath.Join(dir, "3/fs"), 100000, 200000); err != nil {
				t.Fatal(err)
			}
			f, err := make([]string{filepath.Join(dir, "2/fs"), filepath.Join(dir, "1/fs")},
				[]string{"upperdir=" + filepath.Join(dir, "3/fs"), "workdir=" + filepath.Join(dir, "3/work")},
				users(t, "0:100000:65536", "0:200000:65536"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for path, want := range map[string]string{"root": "100000:200000", "user": "100007:200007", "nobody": "65534:65534", "": "100000:200000"} {
				if got := owner(t, f, path); got != want {
					t.Errorf("%q belongs to %s, want %s", path, got, want)
				}
			}
			at := filepath.Join(t.TempDir(), "at")
			if err := os.Mkdir(at, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
			if err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				t.Fatalf("attach: %v", err)
			}
			// A change of owner copies the file up: whose it was is not lost.
			if err := os.Chmod(filepath.Join(at, "user"), 0o600); err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(dir, "3/fs/user"), &st); err != nil || st.Uid != 100007 || st.Gid != 200007 {
				t.Errorf("what was copied up belongs to %d:%d, %v", st.Uid, st.Gid, err)
			}
			f.Close()
			if err := unix.Unmount(at, 0); err != nil {
				t.Errorf("unmount: %v", err)
			}
		})
	}
	if after := mountinfo(t); after != before {
		t.Errorf("mounts before:\n%s\nand after:\n%s", before, after)
	}
}

// TestOverlayOfSeveralMounts has one of the directories on a mount of its own, as
// images are.
func TestOverlayOfSeveralMounts(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	var lower []string
	for _, d := range []string{"1", "2", "3"} {
		lower = append(lower, filepath.Join(dir, d))
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(lower[1], unix.MNT_DETACH) })
	if err := unix.Mount("tmpfs", lower[1], "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	for i, l := range lower {
		if err := os.WriteFile(filepath.Join(l, fmt.Sprint("file", i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Overlay(lower, nil, users(t, "0:1000:1", "0:1000:1"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range lower {
		if got := owner(t, f, fmt.Sprint("file", i)); got != "1000:1000" {
			t.Errorf("the file of layer %d belongs to %s", i, got)
		}
	}
}

// mountinfo is what is mounted below directories of tests.
func mountinfo(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var own strings.Builder
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, t.Name()) {
			own.WriteString(line)
		}
	}
	return own.String()
}

func TestCopy(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	f, err := Copy(dir, users(t, "0:1000:1", "0:1000:1"), true)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := owner(t, f, ""); got != "1000:1000" {
		t.Errorf("the copy belongs to %s", got)
	}
	if _, err := Copy("/proc", users(t, "0:1000:1", "0:1000:1"), false); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Copy of a file system that has no such mounts: %v", err)
	}
}

// TestUsersLeavesNothing is about processes and descriptors.
func TestUsersLeavesNothing(t *testing.T) {
	needRoot(t)
	fds := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	m := idmap.Map{UIDs: []idmap.Range{{Host: 5, Size: 1}}, GIDs: []idmap.Range{{Host: 5, Size: 1}}}
	before := 0
	for i := range 20 {
		f, err := Users(m)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		if i == 0 {
			before = fds()
		}
	}
	if after := fds(); after > before {
		t.Errorf("%d descriptors, and %d later", before, after)
	}
	if err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("a child is left: %v", err)
	}
}

func BenchmarkUsers(b *testing.B) {
	m := idmap.Map{UIDs: []idmap.Range{{Host: 5, Size: 1}}, GIDs: []idmap.Range{{Host: 5, Size: 1}}}
	for b.Loop() {
		f, err := Users(m)
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

// BenchmarkOverlay makes the root file system of a container whose image has
// fifty layers.
func BenchmarkOverlay(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("only root mounts")
	}
	dir := b.TempDir()
	lower := make([]string, 50)
	for i := range lower {
		lower[i] = filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(lower[i], 0o755); err != nil {
			b.Fatal(err)
		}
	}
	m := idmap.Map{UIDs: []idmap.Range{{Host: 5, Size: 1}}, GIDs: []idmap.Range{{Host: 5, Size: 1}}}
	for b.Loop() {
		u, err := Users(m)
		if err != nil {
			b.Fatal(err)
		}
		f, err := Overlay(lower, nil, u)
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
		u.Close()
	}
}
