package tree

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// needRoot skips what makes devices and mounts, loudly.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: owners, devices and mounts")
	}
}

// disks are file systems that share contents, and one that does not.
var disks = []struct {
	name   string
	make   []string // what makes one in a file
	shares bool
}{
	{"tmpfs", nil, false},
	{"btrfs", []string{"mkfs.btrfs", "-q"}, true},
}

// mounted mounts an empty file system for the time of the test.
func mounted(t *testing.T, command []string) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	at := filepath.Join(dir, "at")
	must(t, os.Mkdir(at, 0o755))
	args := []string{"-t", "tmpfs", "-o", "size=200m,noatime", "none", at}
	if command != nil {
		file := filepath.Join(dir, "disk")
		must(t, os.WriteFile(file, nil, 0o600), os.Truncate(file, 256<<20))
		if out, err := exec.Command(command[0], append(command[1:], file)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command[0], err, out)
		}
		args = []string{"-o", "loop,noatime", file, at}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount: %v", err)
		}
	})
	if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	return at
}

// capability is a value of the attribute: to bind to low ports.
const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// furnish puts something of every kind into a directory.
func furnish(t *testing.T, dir string) {
	t.Helper()
	in := func(name string) string { return filepath.Join(dir, name) }
	must(t,
		os.MkdirAll(in("d/empty"), 0o755), os.Mkdir(in("private"), 0o700),
		os.WriteFile(in("f"), []byte("contents"), 0o644), os.WriteFile(in("nothing"), nil, 0o600),
		os.WriteFile(in("d/su"), []byte("program"), 0o755), os.WriteFile(in("net"), []byte("program"), 0o755),
		os.WriteFile(in("long"), []byte(strings.Repeat("0123456789", 1_000_000)), 0o644),
		os.Symlink("/etc/passwd", in("d/out")), os.Symlink("nowhere", in("dangling")), os.Symlink("..", in("d/up")),
		unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Mknod(in("disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70_000))),
		unix.Mkfifo(in("pipe"), 0o622), unix.Mknod(in("socket"), unix.S_IFSOCK|0o777, 0),
		os.Link(in("f"), in("d/f2")), os.Link(in("f"), in("private/f3")), os.Link(in("null"), in("d/null2")), os.Link(in("dangling"), in("d/dangling2")),
		os.WriteFile(in("holes"), []byte("begin"), 0o644), os.Truncate(in("holes"), 1<<30),
	)
	f, err := os.OpenFile(in("holes"), os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("middle"), 700<<20)
	must(t, err, f.Close())
	for _, name := range []string{"f", "d/su", "d/out", "null", "pipe", "socket", "private"} {
		must(t, os.Lchown(in(name), 1000, 70_000))
	}
	must(t, unix.Chmod(in("d/su"), 0o6755), unix.Chmod(in("private"), 0o1700), unix.Chmod(in("null"), 0o666), unix.Chmod(in("socket"), 0o777), unix.Chmod(in("pipe"), 0o622))
	for name, attrs := range map[string][2]string{
		"net": {"security.capability", capability}, "f": {"user.mime", "text\x00plain"},
		"null": {"trusted.a", "1"}, "dangling": {"trusted.b", ""}, "private": {"user.c", "2"},
	} {
		must(t, unix.Lsetxattr(in(name), attrs[0], []byte(attrs[1]), 0))
	}
	when := []unix.Timespec{{Sec: 1_000_000_000, Nsec: 123_456_789}, {Sec: -1000, Nsec: 987_654_321}}
	for _, name := range []string{"f", "d/su", "d/out", "null", "pipe", "d/empty", "private", "d", ""} {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, in(name), when, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// portrait tells everything about a tree that a copy has to have too.
func portrait(t *testing.T, dir string) map[string]string {
	t.Helper()
	all, first := map[string]string{}, map[identity]string{}
	tell := func(path string, st *unix.Stat_t) {
		what := fmt.Sprintf("%o %d:%d %d links, %v %v", st.Mode, st.Uid, st.Gid, st.Nlink, st.Atim, st.Mtim)
		full := filepath.Join(dir, path)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			f, err := os.Open(full)
			must(t, err)
			h := sha256.New()
			_, err = io.Copy(h, io.NewSectionReader(f, 0, 100<<20))
			must(t, err, f.Close())
			what += fmt.Sprintf(" %d %x", st.Size, h.Sum(nil)[:4])
		case unix.S_IFLNK:
			target, err := os.Readlink(full)
			must(t, err)
			what += " " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			what += fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		case unix.S_IFDIR:
			what = strings.Replace(what, fmt.Sprintf("%d links", st.Nlink), "", 1)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			id := identity{uint64(st.Dev), st.Ino}
			if first[id] == "" {
				first[id] = path
			}
			what += " one with " + first[id]
		}
		b := make([]byte, 1000)
		n, err := unix.Llistxattr(full, b)
		must(t, err)
		names := strings.Split(string(b[:n]), "\x00")
		slices.Sort(names)
		for _, name := range names {
			if name != "" {
				v := make([]byte, 1000)
				n, err := unix.Lgetxattr(full, name, v)
				must(t, err)
				what += fmt.Sprintf(" %s=%q", name, v[:n])
			}
		}
		all[path] = what
	}
	must(t, filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		rel, _ := filepath.Rel(dir, path)
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		tell(rel, &st)
		return nil
	}))
	return all
}

// copyOf copies a tree beside itself.
func copyOf(t *testing.T, ctx context.Context, from string, freeMin int64) (to string, shared bool, err error) {
	t.Helper()
	to, links := from+"-copy", from+"-links"
	must(t, os.Mkdir(to, 0o711), os.Mkdir(links, 0o700))
	shared, err = Copy(ctx, openDir(t, from), openDir(t, to), Copying{Links: openDir(t, links), FreeMin: freeMin})
	if left, _ := os.ReadDir(links); err == nil && len(left) > 0 {
		t.Errorf("names are left for links that did not come: %v", left)
	}
	return to, shared, err
}

func TestCopyIsExact(t *testing.T) {
	for _, disk := range disks {
		t.Run(disk.name, func(t *testing.T) {
			from := filepath.Join(mounted(t, disk.make), "tree")
			must(t, os.Mkdir(from, 0o750))
			furnish(t, from)
			want := portrait(t, from)
			to, shared, err := copyOf(t, t.Context(), from, 0)
			if err != nil || shared != disk.shares {
				t.Fatalf("Copy: shared %t, %v, want %t", shared, err, disk.shares)
			}
			if diff := cmp.Diff(want, portrait(t, to)); diff != "" {
				t.Errorf("the copy (-want +got):\n%s", diff)
			}
			var st unix.Stat_t
			must(t, unix.Lstat(filepath.Join(to, "holes"), &st))
			if st.Blocks*512 > 1<<20 {
				t.Errorf("the file with holes takes %d bytes", st.Blocks*512)
			}
			// What is done to a copy is not done to its original.
			must(t, os.WriteFile(filepath.Join(to, "f"), []byte("other"), 0o600))
			if b, err := os.ReadFile(filepath.Join(from, "f")); string(b) != "contents" || err != nil {
				t.Errorf("the original is %q, %v", b, err)
			}
		})
	}
}

func TestCopyIsAsDeepAsTheTree(t *testing.T) {
	from := filepath.Join(t.TempDir(), "tree")
	must(t, os.Mkdir(from, 0o755))
	deepen(t, from, 3000)
	must(t, os.MkdirAll(filepath.Join(from, "d/d/after/more"), 0o755))
	to, _, err := copyOf(t, t.Context(), from, 0)
	must(t, err)
	count := func(dir string) (n int) {
		must(t, Walk(t.Context(), openDir(t, dir), func(*Entry) error { n++; return nil }))
		return n
	}
	if want, got := count(from), count(to); got != want || got != 6002 {
		t.Errorf("%d copied, want %d, all 6002", got, want)
	}
	parent := openDir(t, filepath.Dir(from))
	must(t, Remove(t.Context(), parent, "tree"), Remove(t.Context(), parent, "tree-copy"))
}

func TestCopyStops(t *testing.T) {
	from := filepath.Join(t.TempDir(), "tree")
	must(t, os.Mkdir(from, 0o755))
	for i := range 2000 {
		must(t, os.WriteFile(filepath.Join(from, fmt.Sprint(i)), nil, 0o600))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := copyOf(t, ctx, from, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("Copy: %v, want %v", err, context.Canceled)
	}
	must(t, os.Rename(from, from+"2"))
	if _, _, err := copyOf(t, t.Context(), from+"2", math.MaxInt64); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("Copy on a full disk: %v, want %v", err, errdefs.ErrResourceExhausted)
	}
}

func TestCopyEntersNoMount(t *testing.T) {
	from := filepath.Join(mounted(t, nil), "tree")
	must(t, os.MkdirAll(filepath.Join(from, "sub"), 0o755), unix.Mount("none", filepath.Join(from, "sub"), "tmpfs", 0, ""))
	t.Cleanup(func() { unix.Unmount(filepath.Join(from, "sub"), unix.MNT_DETACH) })
	if _, _, err := copyOf(t, t.Context(), from, 0); !errors.Is(err, unix.EXDEV) {
		t.Errorf("Copy: %v, want %v", err, unix.EXDEV)
	}
	must(t, unix.Unmount(filepath.Join(from, "sub"), unix.MNT_DETACH))
}
