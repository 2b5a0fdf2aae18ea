package changes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const attr = "trusted.overlay."

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: owners, devices and attributes")
	}
}

func open(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// told lists changes: "-path" for what is deleted, "path=other" for a link.
func told(t testing.TB, trees Trees) ([]string, error) {
	t.Helper()
	var all []string
	err := Walk(t.Context(), trees, func(c *Change) error {
		switch {
		case c.Deleted:
			all = append(all, "-"+c.Path)
		case c.Link != "":
			all = append(all, c.Path+"="+c.Link)
		default:
			all = append(all, c.Path)
		}
		return nil
	})
	return all, err
}

func wantTold(t testing.TB, trees Trees, want ...string) {
	t.Helper()
	got, err := told(t, trees)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("changes: %v (-want +got):\n%s", err, diff)
	}
}

// must is for steps that do not fail.
func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// settled is a time that all that is made by [plant] has.
var settled = time.Unix(1_600_000_000, 123_456_789)

// plant makes files, and directories of what ends in a slash.
func plant(t testing.TB, paths ...string) string {
	t.Helper()
	root := t.TempDir()
	must(t, os.Chmod(root, 0o755))
	for _, p := range paths {
		path := filepath.Join(root, p)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		if strings.HasSuffix(p, "/") {
			must(t, os.MkdirAll(path, 0o755))
		} else {
			must(t, os.WriteFile(path, []byte("the file "+p), 0o644))
		}
	}
	still(t, root)
	return root
}

// still gives everything in a tree the same time.
func still(t testing.TB, root string) {
	t.Helper()
	at := unix.NsecToTimespec(settled.UnixNano())
	must(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW))
	}))
}

func TestOnlyWhatDiffersIsTold(t *testing.T) {
	needRoot(t)
	files := []string{"a", "dir/b", "dir/c", "dir/deep/d", "dir/deep/e", "gone/f", "gone/g/h"}
	lower := plant(t, files...)
	trees := func(change func(root string)) Trees {
		upper := plant(t, files...)
		change(upper)
		still(t, upper)
		return Trees{Lower: open(t, lower), Upper: open(t, upper)}
	}
	path := func(root, name string) string { return filepath.Join(root, name) }

	wantTold(t, trees(func(string) {}))
	wantTold(t, trees(func(r string) { must(t, os.WriteFile(path(r, "dir/b"), []byte("THE file dir/b"), 0)) }), "dir", "dir/b")
	wantTold(t, trees(func(r string) { must(t, os.Chmod(path(r, "dir/deep/d"), 0o4755)) }), "dir", "dir/deep", "dir/deep/d")
	wantTold(t, trees(func(r string) { must(t, os.Chown(path(r, "dir"), 1, 2)) }), "dir")
	wantTold(t, trees(func(r string) { must(t, unix.Setxattr(path(r, "dir/deep"), "user.x", nil, 0)) }), "dir", "dir/deep")
	wantTold(t, trees(func(r string) { must(t, unix.Setxattr(path(r, "a"), "trusted.other", []byte("y"), 0)) }))
	wantTold(t, trees(func(r string) { must(t, os.RemoveAll(path(r, "gone"))) }), "-gone")
	wantTold(t, trees(func(r string) { must(t, os.RemoveAll(path(r, "gone/g"))) }), "gone", "-gone/g")
	wantTold(t, trees(func(r string) {
		must(t, os.RemoveAll(path(r, "gone")), os.WriteFile(path(r, "gone"), nil, 0o644))
	}), "gone")
	wantTold(t, trees(func(r string) { must(t, os.Remove(path(r, "a")), os.MkdirAll(path(r, "a/b"), 0o755)) }), "a", "a/b")
	wantTold(t, trees(func(r string) { must(t, os.Remove(path(r, "a")), os.Symlink("dir", path(r, "a"))) }), "a")
	wantTold(t, trees(func(r string) { must(t, os.Rename(path(r, "dir/deep"), path(r, "new"))) }),
		"dir", "-dir/deep", "new", "new/d", "new/e")
	wantTold(t, trees(func(r string) { must(t, os.Chmod(r, 0o700)) }), "")
	wantTold(t, trees(func(r string) { must(t, unix.Mkfifo(path(r, "pipe"), 0o600)) }), "pipe")
	wantTold(t, trees(func(r string) { must(t, unix.Mknod(path(r, "socket"), unix.S_IFSOCK|0o600, 0)) }))
	wantTold(t, trees(func(r string) {
		must(t, os.Remove(path(r, "a")), unix.Mknod(path(r, "a"), unix.S_IFSOCK|0o600, 0))
	}), "-a")

	// A time alone is a change, to the nanosecond.
	later := trees(func(string) {})
	at := unix.NsecToTimespec(settled.UnixNano() + 1)
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, later.Upper.Name()+"/a", []unix.Timespec{at, at}, 0))
	wantTold(t, later, "a")

	// From nothing, everything.
	wantTold(t, Trees{Upper: open(t, lower)},
		"a", "dir", "dir/b", "dir/c", "dir/deep", "dir/deep/d", "dir/deep/e", "gone", "gone/f", "gone/g", "gone/g/h")
}

// TestLinksAreToldWhole tries what becomes of names of one file.
func TestLinksAreToldWhole(t *testing.T) {
	needRoot(t)
	// "b" and "d/c" are one file, and "a" and "z" are others.
	linked := func(change func(path func(name string) string)) string {
		root := plant(t, "a", "d/c", "z")
		path := func(name string) string { return filepath.Join(root, name) }
		must(t, os.Link(path("d/c"), path("b")))
		change(path)
		still(t, root)
		return root
	}
	lower := open(t, linked(func(func(string) string) {}))
	for what, c := range map[string]struct {
		change func(path func(string) string)
		want   []string
	}{
		"nothing": {func(func(string) string) {}, nil},
		"a new name for what is there": {func(path func(string) string) {
			must(t, os.Link(path("a"), path("new")))
		}, []string{"a", "new=a"}},
		"a new name for what has some": {func(path func(string) string) {
			must(t, os.Link(path("b"), path("new")))
		}, []string{"b", "d", "d/c=b", "new=b"}},
		"a name less": {func(path func(string) string) { must(t, os.Remove(path("b"))) }, []string{"-b"}},
		"a change of all": {func(path func(string) string) { must(t, os.Chmod(path("b"), 0o600)) },
			[]string{"b", "d", "d/c=b"}},
		"a name that is a file of its own, and the same": {func(path func(string) string) {
			must(t, os.Remove(path("b")), os.WriteFile(path("b"), []byte("the file d/c"), 0o644))
		}, []string{"b", "d", "d/c"}},
		"a name that is a file of its own, and another": {func(path func(string) string) {
			must(t, os.Remove(path("b")), os.WriteFile(path("b"), []byte("other"), 0o644))
		}, []string{"b"}},
		"a name that goes elsewhere": {func(path func(string) string) {
			must(t, os.Remove(path("b")), os.Link(path("z"), path("b")))
		}, []string{"b", "z=b"}},
	} {
		t.Run(what, func(t *testing.T) {
			wantTold(t, Trees{Lower: lower, Upper: open(t, linked(c.change))}, c.want...)
		})
	}
}

// TestWhatNoLayerCanSayIsRefused is told of nothing else, and in time.
func TestWhatNoLayerCanSayIsRefused(t *testing.T) {
	needRoot(t)
	for what, make := range map[string]func(root string) error{
		"a name of a whiteout":  func(r string) error { return os.WriteFile(r+"/.wh.x", nil, 0o644) },
		"a directory of one":    func(r string) error { return os.MkdirAll(r+"/.wh.d/sub", 0o755) },
		"an opaque mark":        func(r string) error { return os.WriteFile(r+"/.wh..wh..opq", nil, 0o644) },
		"the device 0:0":        func(r string) error { return unix.Mknod(r+"/c", unix.S_IFCHR|0o600, 0) },
		"a path that is longer": func(r string) error { return deep(r, 17) },
	} {
		root := plant(t, "fine")
		if err := make(root); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if _, err := told(t, Trees{Upper: open(t, root)}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("%s: %v, want %v", what, err, errdefs.ErrFailedPrecondition)
		}
	}
}

// deep makes directories in each other, of names of 255 bytes.
func deep(root string, n int) error {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range n {
		if err != nil {
			return err
		}
		name := strings.Repeat("d", 255)
		if err = unix.Mkdirat(fd, name, 0o755); err != nil {
			break
		}
		var next int
		if next, err = unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
			unix.Close(fd)
			fd = next
		}
	}
	unix.Close(fd)
	return err
}

// TestDeepTreesNeedFewFiles goes deeper than directories are kept open.
func TestDeepTreesNeedFewFiles(t *testing.T) {
	path := strings.Repeat("d/", 500)
	lower, upper := plant(t, path+"x"), plant(t, path+"x")
	must(t, os.WriteFile(filepath.Join(upper, path, "x"), []byte("changed"), 0))
	got, err := told(t, Trees{Lower: open(t, lower), Upper: open(t, upper)})
	if err != nil || len(got) != 501 || got[500] != path+"x" {
		t.Errorf("%d changes, %v", len(got), err)
	}
}

func TestNamesOfAnyBytes(t *testing.T) {
	long := "line\nbreak\xff\xfe" + strings.Repeat("n", 243)
	lower := plant(t, long, "-rf", " ")
	wantTold(t, Trees{Lower: open(t, lower), Upper: open(t, plant(t))}, "- ", "--rf", "-"+long)
	wantTold(t, Trees{Lower: open(t, plant(t)), Upper: open(t, lower)}, " ", "-rf", long)
}

// TestWhatChangesMeanwhileIsAnError changes a tree in the middle of a walk.
func TestWhatChangesMeanwhileIsAnError(t *testing.T) {
	for what, change := range map[string]func(root string) error{
		"the file becomes longer":  func(r string) error { return os.WriteFile(r+"/b", make([]byte, 5000), 0) },
		"the file is written":      func(r string) error { return os.WriteFile(r+"/b", []byte("the FILE b"), 0) },
		"the mode changes":         func(r string) error { return os.Chmod(r+"/b", 0o600) },
		"the next one goes":        func(r string) error { return os.Remove(r + "/c") },
		"a new one comes":          func(r string) error { return os.WriteFile(r+"/z", nil, 0o644) },
		"the last one is a link":   func(r string) error { return errors.Join(os.RemoveAll(r+"/d"), os.Symlink("/", r+"/d")) },
		"the last one is another":  func(r string) error { return errors.Join(os.Rename(r+"/d", r+"/o"), os.Mkdir(r+"/d", 0o755)) },
		"an older one is replaced": func(r string) error { return os.Rename(r+"/a", r+"/b") },
	} {
		root := plant(t, "a", "b", "c", "d/e")
		err := Walk(t.Context(), Trees{Upper: open(t, root)}, func(c *Change) error {
			if c.Path != "b" {
				return nil
			}
			_, err := io.Copy(io.Discard, c.File)
			return errors.Join(err, change(root))
		})
		if !errors.Is(err, errdefs.ErrAborted) {
			t.Errorf("%s: %v, want %v", what, err, errdefs.ErrAborted)
		}
	}
}

// TestNothingButFilesIsOpened puts what blocks or acts when it is opened where a
// file was a moment ago.
func TestNothingButFilesIsOpened(t *testing.T) {
	needRoot(t)
	for what, kind := range map[string]uint32{"pipe": unix.S_IFIFO, "device": unix.S_IFCHR, "link": unix.S_IFLNK} {
		root := plant(t, "a", "b")
		w := func(c *Change) error {
			if c.Path != "a" {
				return nil
			}
			path := root + "/b"
			if err := os.Remove(path); err != nil {
				return err
			}
			if kind == unix.S_IFLNK {
				return os.Symlink("/etc/passwd", path)
			}
			return unix.Mknod(path, kind|0o600, int(unix.Mkdev(1, 5)))
		}
		// The walk sees that it is something else, and would not open it either.
		err := Walk(t.Context(), Trees{Upper: open(t, root)}, w)
		if err == nil || errors.Is(err, io.EOF) {
			t.Errorf("a %s: %v", what, err)
		}
		var st unix.Stat_t
		must(t, unix.Lstat(root+"/b", &st))
		st.Mode = unix.S_IFREG
		if f, err := openFile(int(open(t, root).Fd()), "b", &st); !errors.Is(err, errdefs.ErrAborted) {
			t.Errorf("a %s was opened: %v, %v", what, f, err)
		}
	}
}

// TestReadingLeavesNoTrace looks at the times of access.
func TestReadingLeavesNoTrace(t *testing.T) {
	root := plant(t, "a")
	old := unix.NsecToTimespec(settled.Add(-1000 * time.Hour).UnixNano())
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, root+"/a", []unix.Timespec{old, old}, 0))
	must(t, Walk(t.Context(), Trees{Upper: open(t, root)}, func(c *Change) error {
		if c.File == nil {
			return nil
		}
		_, err := io.Copy(io.Discard, c.File)
		return err
	}))
	var st unix.Stat_t
	must(t, unix.Lstat(root+"/a", &st))
	if st.Atim != old {
		t.Errorf("the file was read at %v", st.Atim)
	}
}

// TestUpperDirectoryThatIsNotClear has what overlayfs makes with options that
// snapshots are not mounted with.
func TestUpperDirectoryThatIsNotClear(t *testing.T) {
	needRoot(t)
	for what, mark := range map[string]func(root string) error{
		"a directory that was renamed": func(r string) error { return unix.Setxattr(r+"/d", attr+"redirect", []byte("/other"), 0) },
		"a file without its contents":  func(r string) error { return unix.Setxattr(r+"/d/f", attr+"metacopy", nil, 0) },
		"a whiteout of another form":   func(r string) error { return unix.Setxattr(r+"/d", attr+"opaque", []byte("x"), 0) },
	} {
		lower, upper := plant(t, "a", "d/f"), plant(t, "d/f")
		must(t, mark(upper))
		got, err := told(t, Trees{Lower: open(t, lower), Upper: open(t, upper), Overlay: attr})
		if !errors.Is(err, ErrUnclear) || len(got) > 0 {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
}

// TestUpperDirectory has one of each mark.
func TestUpperDirectory(t *testing.T) {
	needRoot(t)
	lower := plant(t, "a", "b/c", "b/d", "e/f", "e/g/h", "e/g/i", "same")
	upper := plant(t, "e/g/i", "e/new", "same")
	must(t,
		unix.Mknod(upper+"/a", unix.S_IFCHR, 0),
		unix.Mknod(upper+"/was-never", unix.S_IFCHR, 0),
		unix.Setxattr(upper+"/e", attr+"opaque", []byte("y"), 0),
		os.MkdirAll(upper+"/b", 0o755),
		unix.Mknod(upper+"/b/c", unix.S_IFCHR, 0),
	)
	still(t, upper)
	got, err := told(t, Trees{Lower: open(t, lower), Upper: open(t, upper), Overlay: attr})
	want := []string{"-a", "b", "-b/c", "e", "-e/f", "e/g", "-e/g/h", "e/new"}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("changes: %v (-want +got):\n%s", err, diff)
	}
	if !slices.IsSortedFunc(got, func(a, b string) int { return strings.Compare(strings.Trim(a, "-"), strings.Trim(b, "-")) }) {
		t.Errorf("not in order: %q", got)
	}
}

// TestWalkEndsAtOnce does not go on with a large tree.
func TestWalkEndsAtOnce(t *testing.T) {
	root := plant(t)
	for i := range 50 {
		must(t, os.Mkdir(fmt.Sprint(root, "/", i), 0o755))
	}
	stop := errors.New("enough")
	n := 0
	err := Walk(t.Context(), Trees{Upper: open(t, root)}, func(*Change) error { n++; return stop })
	if !errors.Is(err, stop) || n != 1 {
		t.Errorf("%d changes after an error, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n = 0
	err = Walk(ctx, Trees{Upper: open(t, root)}, func(*Change) error { n++; cancel(); return nil })
	if !errors.Is(err, context.Canceled) || n != 1 {
		t.Errorf("%d changes after the end of the context, %v", n, err)
	}
}
