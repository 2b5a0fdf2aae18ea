package erofs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/kernel"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts, owners and devices")
	}
}

// imageOf builds the image of a directory.
func imageOf(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := buildTo(t.Context(), path, dir); err != nil {
		t.Fatalf("build: %v", err)
	}
	return path
}

func buildTo(ctx context.Context, path, dir string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return build(ctx, f, int(root.Fd()), "trusted.overlay.", 0)
}

// mounted returns where an image can be read, until the test ends.
func mounted(t testing.TB, image string) string {
	t.Helper()
	needRoot(t)
	f, err := kernel.New().Overlay(kernel.Overlay{Dir: filepath.Dir(image), Images: []string{filepath.Base(image)}})
	if err != nil {
		t.Fatalf("mount %s: %v", image, err)
	}
	t.Cleanup(func() { f.Close() })
	return fmt.Sprintf("/proc/self/fd/%d/.", f.Fd())
}

// inventory describes a tree, a line for each name.
func inventory(t testing.TB, root string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	first := make(map[uint64]string)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%o %d:%d dev %d:%d links %d time %d.%09d", st.Mode, st.Uid, st.Gid,
			unix.Major(st.Rdev), unix.Minor(st.Rdev), st.Nlink, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d bytes, sum %x", len(b), checksum(b))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " to " + target
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if first[st.Ino] == "" {
				first[st.Ino] = rel
			}
			line += " same as " + first[st.Ino]
		}
		all[rel] = line + attrsOf(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func attrsOf(t testing.TB, path string) (s string) {
	t.Helper()
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		t.Fatalf("listxattr %s: %v", path, err)
	}
	found := make(map[string]string)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatalf("getxattr %s %s: %v", path, name, err)
		}
		found[name] = fmt.Sprintf("%x", value[:n])
	}
	if len(found) > 0 {
		s = fmt.Sprintf(" %v", found)
	}
	return s
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// zoo makes a tree with one of everything.
func zoo(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	p := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, size int) error {
		return os.WriteFile(p(name), bytes.Repeat([]byte(name+"."), size/(len(name)+1)+1)[:size], 0o644)
	}
	for _, n := range []int{0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 8192, 100_000, 3 << 20} {
		must(t, write(fmt.Sprintf("size-%d", n), n))
	}
	must(t,
		os.Mkdir(p("empty"), 0o700), os.Mkdir(p("many"), 0o1777), os.MkdirAll(p("a/b/c"), 0o755),
		os.Symlink("size-1", p("link")), os.Symlink(strings.Repeat("long/", 800), p("long-link")),
		os.Link(p("size-1"), p("a/same")), os.Link(p("size-1"), p("zz-same")),
		unix.Mknod(p("whiteout"), unix.S_IFCHR, 0), unix.Mknod(p("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mknod(p("block"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70_000))),
		unix.Mkfifo(p("fifo"), 0o600), unix.Mknod(p("socket"), unix.S_IFSOCK|0o700, 0),
		write("a/set", 10), os.Chown(p("a/set"), 70_000, 4_000_000_000), os.Chmod(p("a/set"), 0o755|fs.ModeSetuid|fs.ModeSetgid),
		write("a/b/!", 5), write("a/b/\xff\xfe\n", 5), write("a/"+strings.Repeat("n", 255), 5),
		os.Lchown(p("link"), 5, 6), os.Chown(p("fifo"), 7, 8),
		unix.Setxattr(p("size-1"), "user.one", []byte("1"), 0),
		unix.Setxattr(p("a"), "trusted.overlay.opaque", []byte("y"), 0),
		unix.Setxattr(p("size-8192"), "user.big", bytes.Repeat([]byte("v"), 3000), 0),
		unix.Setxattr(p("size-2048"), "user.empty", nil, 0),
		unix.Setxattr(p("a/set"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
		unix.Lsetxattr(p("link"), "trusted.of-a-link", []byte("x"), 0),
		unix.Setxattr(p("fifo"), "trusted.of-a-fifo", []byte("x"), 0),
		unix.Setxattr(p("empty"), "system.posix_acl_default", acl, 0), unix.Setxattr(p("null"), "system.posix_acl_access", acl, 0),
	)
	for i := range 700 {
		must(t, os.WriteFile(p(fmt.Sprintf("many/%0*d", 1+i%200, i)), []byte("x"), 0o600))
	}
	hole, err := os.Create(p("hole"))
	must(t, err)
	must(t, hole.Truncate(50<<20))
	for _, at := range []int64{0, 1 << 20, 30<<20 + 5} {
		_, err := hole.WriteAt([]byte("data"), at)
		must(t, err)
	}
	must(t, hole.Close())
	for i, name := range []string{"a/set", "link", "fifo", "empty", "size-0", "a"} {
		ts := []unix.Timespec{{Sec: 1}, {Sec: int64(i) * 1_000_000_000, Nsec: 123_456_789}}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p(name), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p("size-2"+"047"), []unix.Timespec{{}, {Sec: -1_000}}, 0))
	return dir
}

// acl lets one user more read.
var acl = []byte("\x02\x00\x00\x00" +
	"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" +
	"\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff")

func TestImageIsTheTree(t *testing.T) {
	needRoot(t)
	dir := zoo(t)
	image := imageOf(t, dir)
	if diff := cmp.Diff(inventory(t, dir), inventory(t, mounted(t, image))); diff != "" {
		t.Errorf("the tree and its image differ (-tree +image):\n%s", diff)
	}
	var st unix.Stat_t
	must(t, unix.Stat(image, &st))
	if st.Blocks*512 > 20<<20 {
		t.Errorf("the image occupies %d bytes: holes are not holes in it", st.Blocks*512)
	}
	fsck(t, image)
}

// fsck asks the tool of the format's authors too, where there is one.
func fsck(t testing.TB, image string) {
	t.Helper()
	tool, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Log("no fsck.erofs: only the kernel judges the image")
		return
	}
	if out, err := exec.CommandContext(t.Context(), tool, image).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v: %s", err, out)
	}
}

func TestImageOfRandomTrees(t *testing.T) {
	needRoot(t)
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 0))
		dir := t.TempDir()
		dirs := []string{dir}
		var files []string
		for i := range r.IntN(400) {
			at := filepath.Join(dirs[r.IntN(len(dirs))], fmt.Sprintf("%x%s", i, strings.Repeat("-", r.IntN(240))))
			switch k := r.IntN(8); {
			case k == 0 && len(at) < 3000:
				must(t, os.Mkdir(at, 0o755))
				dirs = append(dirs, at)
			case k == 1 && len(files) > 0:
				must(t, os.Link(files[r.IntN(len(files))], at))
			case k == 2:
				must(t, os.Symlink(strings.Repeat("x", 1+r.IntN(4000)), at))
			default:
				must(t, os.WriteFile(at, bytes.Repeat([]byte{byte(i)}, r.IntN(1<<r.IntN(16))), 0o644))
				if r.IntN(3) == 0 {
					must(t, unix.Setxattr(at, "user.x", make([]byte, r.IntN(2000)), 0))
				}
				files = append(files, at)
			}
		}
		image := imageOf(t, dir)
		if diff := cmp.Diff(inventory(t, dir), inventory(t, mounted(t, image))); diff != "" {
			t.Fatalf("seed %d: the tree and its image differ (-tree +image):\n%s", seed, diff)
		}
		fsck(t, image)
	}
}

func TestImageOfTheSameTreeIsTheSame(t *testing.T) {
	needRoot(t)
	dir := zoo(t)
	// In other order, and with other times of access.
	other := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", "--sparse=always", dir+"/.", other).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	a, err := os.ReadFile(imageOf(t, dir))
	must(t, err)
	b, err := os.ReadFile(imageOf(t, other))
	must(t, err)
	if !bytes.Equal(a, b) {
		t.Errorf("images of %d and %d bytes differ", len(a), len(b))
	}
}

func TestImageOfAnEmptyTreeIsOneBlock(t *testing.T) {
	image := imageOf(t, t.TempDir())
	fi, err := os.Stat(image)
	must(t, err)
	if fi.Size() != blockSize {
		t.Errorf("%d bytes, want %d", fi.Size(), blockSize)
	}
}

func TestImageThatIsNotWholeIsToldFromOneThatIs(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), make([]byte, 10_000), 0o644))
	image := imageOf(t, dir)
	whole, err := os.ReadFile(image)
	must(t, err)
	for name, b := range map[string][]byte{
		"cut": whole[:len(whole)-1], "empty": nil, "zeros": make([]byte, len(whole)), "longer": append(bytes.Clone(whole), 0),
		"changed": append(append(bytes.Clone(whole[:2000]), whole[2000]+1), whole[2001:]...),
	} {
		path := filepath.Join(t.TempDir(), "image")
		must(t, os.WriteFile(path, b, 0o644))
		f, err := os.Open(path)
		must(t, err)
		if s, err := readSuper(f); !errors.Is(err, errImage) {
			t.Errorf("readSuper of %s: %v, %v; want %v", name, s, err, errImage)
		}
		f.Close()
	}
	f, err := os.Open(image)
	must(t, err)
	defer f.Close()
	if _, err := readSuper(f); err != nil {
		t.Errorf("readSuper: %v", err)
	}
}

// A directory or a file whose contents are elsewhere cannot be in an image; what
// else overlayfs notes of an upper directory is left out of it.
func TestImageHasNoMarksOfAnOverlay(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	must(t, unix.Setxattr(dir, "trusted.overlay.origin", []byte("x"), 0), unix.Setxattr(dir, "trusted.overlay.impure", []byte("y"), 0))
	if got := attrsOf(t, mounted(t, imageOf(t, dir))); got != "" {
		t.Errorf("attributes of the root: %s, want none", got)
	}
	for _, mark := range []string{"redirect", "metacopy"} {
		file := filepath.Join(dir, mark)
		must(t, os.WriteFile(file, nil, 0o644), unix.Setxattr(file, "trusted.overlay."+mark, []byte("/x"), 0))
		if err := buildTo(t.Context(), filepath.Join(t.TempDir(), "image"), dir); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("build with a %s: %v, want %v", mark, err, errdefs.ErrFailedPrecondition)
		}
		must(t, os.Remove(file))
	}
}

// A tree deeper than a path may be long is walked by descriptors.
func TestImageOfADeepTree(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	name := strings.Repeat("d", 200)
	for range 100 {
		must(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err, unix.Close(fd))
		fd = next
	}
	must(t, unix.Close(fd))
	image := imageOf(t, dir)
	fsck(t, image)
	if os.Getuid() != 0 {
		return
	}
	at, depth := mounted(t, image), 0
	fd, err = unix.Open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for {
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, unix.Close(fd))
		if err != nil {
			break
		}
		fd, depth = next, depth+1
	}
	if depth != 100 {
		t.Errorf("%d directories deep, want 100", depth)
	}
}

// Somebody who changes the tree meanwhile gets a wrong image and nothing worse.
func TestImageOfATreeThatChanges(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for r := rand.New(rand.NewPCG(1, 1)); ctx.Err() == nil; {
			at := filepath.Join(dir, fmt.Sprint(r.IntN(20)), fmt.Sprint(r.IntN(20)))
			_ = os.MkdirAll(filepath.Dir(at), 0o755)
			switch r.IntN(6) {
			case 0:
				_ = os.Mkdir(at, 0o755)
			case 1:
				_ = os.Symlink("/etc/passwd", at)
			case 2:
				_ = unix.Mkfifo(at, 0o600)
			case 3:
				_ = os.RemoveAll(at)
			case 4:
				_ = os.RemoveAll(filepath.Dir(at))
			default:
				f, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|unix.O_NONBLOCK, 0o644)
				if err == nil {
					_, _ = f.Write(make([]byte, r.IntN(20_000)))
					f.Close()
				}
			}
		}
	}()
	defer func() { stop(); <-done }()
	good := 0
	for range 300 {
		image := filepath.Join(t.TempDir(), "image")
		if err := buildTo(t.Context(), image, dir); err != nil {
			t.Logf("build: %v", err)
			continue
		}
		good++
		if good%20 == 0 {
			inventory(t, mounted(t, image))
		}
	}
	if good == 0 {
		t.Error("no image could be built")
	}
}

func BenchmarkBuild(b *testing.B) {
	dir := b.TempDir()
	for i := range 9000 {
		sub := filepath.Join(dir, fmt.Sprint(i/90))
		_ = os.Mkdir(sub, 0o755)
		must(b, os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), make([]byte, 1000+i*3), 0o644))
	}
	for b.Loop() {
		must(b, buildTo(b.Context(), filepath.Join(b.TempDir(), "image"), dir))
	}
}
