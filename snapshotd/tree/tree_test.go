package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func openDir(t testing.TB, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// deepen makes n directories in each other, deeper than any path can say, each
// with a file in it.
func deepen(t testing.TB, root string, n int) {
	t.Helper()
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for range n {
		must(t, unix.Mkdirat(fd, "d", 0o755))
		next, err := unix.Openat(fd, "d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err, unix.Close(fd))
		fd = next
		file, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		must(t, err, unix.Close(file))
	}
	must(t, unix.Close(fd))
}

func TestRemoveIsAsDeepAsTheTree(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "x"), 0o755))
	deepen(t, filepath.Join(dir, "x"), 5000)
	var before unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	low := before
	low.Cur = 200
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)

	u, err := Measure(t.Context(), openDir(t, filepath.Join(dir, "x")))
	if err != nil || u.Inodes != 10_001 {
		t.Errorf("Measure: %+v, %v, want 10001 inodes", u, err)
	}
	if err := Remove(t.Context(), openDir(t, dir), "x"); err != nil {
		t.Fatalf("Remove: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
}

func TestRemoveTakesEveryKindAndNoMore(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "canary"), nil, 0o600))
	x := filepath.Join(dir, "x")
	must(t, os.MkdirAll(filepath.Join(x, "a/b"), 0o755), os.Symlink(outside, filepath.Join(x, "a/l")), os.Symlink(outside, filepath.Join(dir, "l")),
		unix.Mkfifo(filepath.Join(x, "p"), 0o600), os.Mkdir(filepath.Join(x, "closed"), 0))
	for i := range 3000 { // more than one read of the directory
		must(t, os.WriteFile(filepath.Join(x, fmt.Sprint("f", i)), nil, 0o600))
	}
	for i := range 200 {
		must(t, os.MkdirAll(filepath.Join(x, fmt.Sprint("d", i), "full"), 0o755))
	}
	fd := openDir(t, dir)
	for _, name := range []string{"x", "l", "none"} {
		if err := Remove(t.Context(), fd, name); err != nil {
			t.Errorf("Remove(%q): %v", name, err)
		}
	}
	for d, want := range map[string][]string{dir: nil, outside: {"canary"}} {
		entries, err := os.ReadDir(d)
		must(t, err)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if diff := cmp.Diff(want, names); diff != "" {
			t.Errorf("%s (-want +got):\n%s", d, diff)
		}
	}
	must(t, os.MkdirAll(filepath.Join(dir, "y/z"), 0o755))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Remove(ctx, fd, "y"); !errors.Is(err, context.Canceled) {
		t.Errorf("Remove after its context has ended: %v", err)
	}
}

func TestNothingMountedIsEntered(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir, outside := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "canary"), nil, 0o600))
	at := filepath.Join(dir, "x", "mounted")
	must(t, os.MkdirAll(at, 0o755), unix.Mount(outside, at, "", unix.MS_BIND, ""))
	defer unix.Unmount(at, unix.MNT_DETACH)
	fd := openDir(t, dir)
	if err := Remove(t.Context(), fd, "x"); err == nil {
		t.Error("removed, want an error")
	}
	if _, err := Open(fd, "x/mounted"); !errors.Is(err, unix.EXDEV) {
		t.Errorf("Open: %v, want %v", err, unix.EXDEV)
	}
	if _, err := MakeDirs(fd, "x/mounted/new", func(int, string) error { return nil }); !errors.Is(err, unix.EXDEV) {
		t.Errorf("MakeDirs: %v, want %v", err, unix.EXDEV)
	}
	var seen []string
	must(t, Walk(t.Context(), fd, func(e *Entry) error { seen = append(seen, e.Path()); return nil }))
	if !slices.Equal(seen, []string{"x", "x/mounted"}) {
		t.Errorf("Walk: %q, want nothing of what is mounted", seen)
	}
	if _, err := os.Stat(filepath.Join(outside, "canary")); err != nil {
		t.Errorf("the canary: %v", err)
	}
}

func TestLinksStayInside(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "usr/lib"), 0o755))
	for name, to := range map[string]string{
		"lib": "usr/lib", "abs": "/usr/lib", "up": "../../../../usr/lib", "root": "/", "dangling": "/new/place", "loop": "loop",
		"usr/self": "..", "kernel": "/proc/self/fd",
	} {
		must(t, os.Symlink(to, filepath.Join(dir, name)))
	}
	fd := openDir(t, dir)
	want := func(path, real string) {
		t.Helper()
		got, err := MakeDirs(fd, path, func(int, string) error { return nil })
		if err != nil {
			t.Errorf("MakeDirs(%q): %v", path, err)
			return
		}
		defer unix.Close(got)
		is, err := identify(got)
		must(t, err)
		should, err := identify(openDir(t, filepath.Join(dir, real)))
		must(t, err)
		if is != should {
			t.Errorf("MakeDirs(%q) is not %s", path, real)
		}
		again, err := Open(fd, path)
		if err != nil {
			t.Errorf("Open(%q): %v", path, err)
			return
		}
		defer unix.Close(again)
		if is, err := identify(again); err != nil || is != should {
			t.Errorf("Open(%q) is not %s: %v", path, real, err)
		}
	}
	want("lib", "usr/lib")
	want("abs", "usr/lib")
	want("up", "usr/lib")
	want("root/../../..", "")
	want("usr/self/lib", "usr/lib")
	want("abs/made", "usr/lib/made")
	want("dangling/deep", "new/place/deep")
	want("kernel/made", "proc/self/fd/made")
	for path, kind := range map[string]error{"loop/x": unix.ELOOP, strings.Repeat("long/", 1000): unix.ENAMETOOLONG} {
		if _, err := MakeDirs(fd, path, func(int, string) error { return nil }); !errors.Is(err, kind) {
			t.Errorf("MakeDirs(%.20q): %v, want %v", path, err, kind)
		}
	}
	for _, path := range []string{"lib", "usr/self"} {
		if _, err := OpenPlain(fd, path); !errors.Is(err, unix.ELOOP) {
			t.Errorf("OpenPlain(%q): %v, want %v", path, err, unix.ELOOP)
		}
		if _, err := OpenChild(fd, path); err == nil {
			t.Errorf("OpenChild(%q) follows", path)
		}
	}
}

// TestRemoveWhileSomebodyMovesThings removes trees in which directories trade
// places with links out of the tree.
func TestRemoveWhileSomebodyMovesThings(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(outside, "d/e"), 0o755), os.WriteFile(filepath.Join(outside, "d/e/canary"), nil, 0o600))
	fd := openDir(t, dir)
	var stop atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for !stop.Load() {
			unix.Renameat2(fd, "x/d", fd, "l", unix.RENAME_EXCHANGE)
		}
	}()
	for range 300 {
		os.MkdirAll(filepath.Join(dir, "x/d/e/f"), 0o755)
		os.Symlink(filepath.Join(outside, "d"), filepath.Join(dir, "l"))
		for _, name := range []string{"x", "l"} {
			Remove(t.Context(), fd, name)
		}
	}
	stop.Store(true)
	<-ended
	if _, err := os.Stat(filepath.Join(outside, "d/e/canary")); err != nil {
		t.Errorf("the canary: %v", err)
	}
}
