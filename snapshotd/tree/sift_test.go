package tree

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSiftKeepsWhatItIsToldTo and the directories that this is in.
func TestSiftKeepsWhatItIsToldTo(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"a/b/c", "a/empty", "d/e", "kept"} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	for _, file := range []string{"a/b/c/f", "a/b/c/g", "a/x", "d/e/f", "y"} {
		must(t, os.WriteFile(filepath.Join(root, file), nil, 0o600))
	}
	must(t, Sift(t.Context(), openDir(t, root), func(path string) bool { return path == "a/b/c/g" || path == "kept" }))
	var left []string
	must(t, fs.WalkDir(os.DirFS(root), ".", func(path string, _ fs.DirEntry, err error) error {
		left = append(left, path)
		return err
	}))
	if want := []string{".", "a", "a/b", "a/b/c", "a/b/c/g", "kept"}; !slices.Equal(left, want) {
		t.Errorf("%q are left, want %q", left, want)
	}
}

// TestSiftIsAsDeepAsTheTree where a process may have few files.
func TestSiftIsAsDeepAsTheTree(t *testing.T) {
	root := t.TempDir()
	deepen(t, root, 1000)
	dir := openDir(t, root)
	var before unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	low := before
	low.Cur = 200
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	must(t, Sift(t.Context(), dir, func(path string) bool { return strings.Count(path, "/") < 500 }))
	left := 0
	must(t, Walk(t.Context(), dir, func(*Entry) error {
		left++
		return nil
	}))
	if want := 500 + 499; left != want { // directories and files
		t.Errorf("%d are left, want %d", left, want)
	}
}

// mark sets a mark, as chattr does. It does not outlive the test.
func mark(t *testing.T, path string, flag uint32) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	before, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		t.Cleanup(func() { unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(before)) })
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(before|flag))
	}
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("the file system of the tests has no marks: ", err)
	}
	must(t, err)
}

// TestWhatIsMarkedIsRemoved has marks that keep root from it, on every kind of
// thing that can have them.
func TestWhatIsMarkedIsRemoved(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: marks")
	}
	parent := t.TempDir()
	for _, flag := range []uint32{unix.STATX_ATTR_IMMUTABLE, unix.STATX_ATTR_APPEND} {
		root := filepath.Join(parent, "root")
		must(t, os.MkdirAll(filepath.Join(root, "d/e"), 0o755), os.Mkdir(filepath.Join(root, "empty"), 0o755))
		for _, file := range []string{"f", "d/f", "d/e/f"} {
			must(t, os.WriteFile(filepath.Join(root, file), nil, 0o600))
		}
		must(t, os.Symlink("f", filepath.Join(root, "d/link")))
		for _, path := range []string{"f", "empty", "d/e/f", "d/e", "d", "."} {
			mark(t, filepath.Join(root, path), flag)
		}
		must(t, Remove(t.Context(), openDir(t, parent), "root"))
		if _, err := os.Lstat(root); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("with mark %#x: %v, want %v", flag, err, fs.ErrNotExist)
		}
	}
	// What is marked outside of it is not touched.
	file := filepath.Join(parent, "outside")
	must(t, os.WriteFile(file, nil, 0o600))
	mark(t, file, unix.STATX_ATTR_IMMUTABLE)
	must(t, os.Mkdir(filepath.Join(parent, "root"), 0o755), os.Symlink("../outside", filepath.Join(parent, "root", "link")))
	must(t, Remove(t.Context(), openDir(t, parent), "root"))
	if err := os.Remove(file); !errors.Is(err, unix.EPERM) {
		t.Errorf("removal of what is marked outside: %v, want %v", err, unix.EPERM)
	}
}
