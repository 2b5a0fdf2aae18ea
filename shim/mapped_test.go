package shim

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/mount"
)

// TestMountsWithOtherIDs makes a root file system as it is for a container with
// users of its own.
func TestMountsWithOtherIDs(t *testing.T) {
	needRoot(t)
	dir, at := t.TempDir(), t.TempDir()
	for _, d := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "lower/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	maps := []string{"uidmap=0:5000:65536", "gidmap=0:6000:65536"}
	overlay := mount.Mount{Type: "overlay", Source: "overlay", Options: append([]string{
		"lowerdir=" + filepath.Join(dir, "lower"), "upperdir=" + filepath.Join(dir, "upper"), "workdir=" + filepath.Join(dir, "work"), "nosuid"}, maps...)}
	bind := mount.Mount{Type: "bind", Source: filepath.Join(dir, "lower"), Options: append([]string{"rbind", "ro"}, maps...)}
	for _, m := range []mount.Mount{overlay, bind} {
		if err := mountAll([]mount.Mount{m}, at); err != nil {
			t.Fatalf("%s: %v", m.Type, err)
		}
		t.Cleanup(func() { _ = unmountAll(at) })
		info, err := os.Lstat(filepath.Join(at, "file"))
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != 5000 || st.Gid != 6000 {
			t.Errorf("%s: the file belongs to %d:%d", m.Type, st.Uid, st.Gid)
		}
		var fs unix.Statfs_t
		want := map[string]int64{"overlay": unix.ST_NOSUID, "bind": unix.ST_RDONLY}[m.Type]
		if err := unix.Statfs(at, &fs); err != nil || fs.Flags&want == 0 {
			t.Errorf("%s: flags %#x of the mount, without %#x, %v", m.Type, fs.Flags, want, err)
		}
		if err := unmountAll(at); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMountsWithBadIDs(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for _, maps := range [][]string{
		{"uidmap=0:1:1"},
		{"gidmap=0:1:1"},
		{"uidmap=junk", "gidmap=0:1:1"},
		{"uidmap=0:0:4294967295", "gidmap=0:0:4294967295"},
	} {
		m := mount.Mount{Type: "bind", Source: dir, Options: append(maps, "rbind")}
		if err := mountAll([]mount.Mount{m}, dir); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("mount with %q: %v", maps, err)
		}
	}
	m := mount.Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"uidmap=0:1:1", "gidmap=0:1:1"}}
	if err := mountAll([]mount.Mount{m}, dir); !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Errorf("mount of a file system of its own: %v", err)
	}
	if _, mounted, _ := mountOn(dir); mounted {
		t.Error("something is mounted")
	}
}
