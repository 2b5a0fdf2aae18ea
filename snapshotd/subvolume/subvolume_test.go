package subvolume

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// mounted mounts an empty btrfs for the time of the test.
func mounted(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	disk, at := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	must(t, os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 512<<20))
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount %s: %v", at, err)
		}
	})
	for _, c := range [][]string{{"mkfs.btrfs", "-q", disk}, {"mount", "-o", "loop", disk, at}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", c, err, out)
		}
	}
	return at
}

func opened(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestACloneIsApart(t *testing.T) {
	at := mounted(t)
	root := opened(t, at)
	must(t, Make(root, "a"), os.WriteFile(filepath.Join(at, "a/f"), []byte("1"), 0o600))
	a := opened(t, filepath.Join(at, "a"))
	must(t, SetReadOnly(a, true), Clone(root, "b", a))
	if is, err := ReadOnly(a); !is || err != nil {
		t.Errorf("ReadOnly: %t, %v", is, err)
	}
	if err := os.WriteFile(filepath.Join(at, "a/f"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to one that can only be read: %v, want %v", err, unix.EROFS)
	}
	must(t, os.WriteFile(filepath.Join(at, "b/f"), []byte("2"), 0o600))
	if b, err := os.ReadFile(filepath.Join(at, "a/f")); string(b) != "1" || err != nil {
		t.Errorf("the original is %q, %v", b, err)
	}
	if err := Make(root, "a"); !errors.Is(err, unix.EEXIST) {
		t.Errorf("Make of one that there is: %v, want %v", err, unix.EEXIST)
	}
}

// TestWhatAContainerMadeInsideGoes has subvolumes in each other, which can only be
// read in part, and where no path leads.
func TestWhatAContainerMadeInsideGoes(t *testing.T) {
	at := mounted(t)
	root := opened(t, at)
	must(t, Make(root, "keep"), os.WriteFile(filepath.Join(at, "keep/f"), []byte("1"), 0o600), Make(root, "vol"))
	deep := filepath.Join(at, "vol")
	for i := range 20 {
		deep = filepath.Join(deep, strings.Repeat("d", 100))
		must(t, os.Mkdir(deep, 0o700), Make(opened(t, deep), "in"), Make(opened(t, deep), "beside"))
		deep = filepath.Join(deep, "in")
		must(t, os.WriteFile(filepath.Join(deep, "f"), []byte(fmt.Sprint(i)), 0o600), os.Symlink("/", filepath.Join(deep, "link")))
	}
	for dir := deep; dir != at; dir = filepath.Dir(dir) {
		if n := filepath.Base(dir); n == "in" || n == "vol" {
			must(t, SetReadOnly(opened(t, dir), true))
		}
	}
	must(t, Remove(t.Context(), root, "vol"), Remove(t.Context(), root, "vol"))
	entries, err := os.ReadDir(at)
	if err != nil || len(entries) != 1 || entries[0].Name() != "keep" {
		t.Errorf("left: %v, %v, want keep", entries, err)
	}
	if out, err := exec.Command("btrfs", "subvolume", "list", at).Output(); err != nil || strings.Count(string(out), "\n") != 1 {
		t.Errorf("subvolumes left: %s, %v", out, err)
	}
	must(t, os.MkdirAll(filepath.Join(at, "plain/dir"), 0o700), Remove(t.Context(), root, "plain"))
}

// TestWhatIsMarkedGoes has marks on the roots of subvolumes, of which one can only
// be read.
func TestWhatIsMarkedGoes(t *testing.T) {
	at := mounted(t)
	root := opened(t, at)
	must(t, Make(root, "vol"), os.WriteFile(filepath.Join(at, "vol/f"), nil, 0o600), Make(opened(t, filepath.Join(at, "vol")), "in"))
	if out, err := exec.Command("chattr", "+i", at+"/vol/f", at+"/vol/in", at+"/vol").CombinedOutput(); err != nil {
		t.Fatalf("chattr: %v: %s", err, out)
	}
	must(t, SetReadOnly(opened(t, filepath.Join(at, "vol")), true), Remove(t.Context(), root, "vol"))
	if entries, err := os.ReadDir(at); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestMeasureIsWhatWasWritten(t *testing.T) {
	at := mounted(t)
	root := opened(t, at)
	must(t, Make(root, "a"))
	for i := range 2000 { // more than one answer has room for
		must(t, os.WriteFile(filepath.Join(at, fmt.Sprintf("a/%d", i)), []byte(strings.Repeat("x", 1000)), 0o600))
	}
	must(t, os.WriteFile(filepath.Join(at, "a/long"), make([]byte, 1<<20), 0o600))
	a := opened(t, filepath.Join(at, "a"))
	must(t, Clone(root, "b", a))
	b := opened(t, filepath.Join(at, "b"))
	must(t, os.WriteFile(filepath.Join(at, "b/new"), make([]byte, 300_000), 0o600), os.Remove(filepath.Join(at, "b/7")))
	unix.Sync()
	whole, err := Measure(t.Context(), a, false)
	if want := int64(2002); err != nil || whole.Inodes != want || whole.Size != 1<<20+2000*1000 {
		t.Errorf("Measure: %+v, %v, want %d inodes of %d bytes", whole, err, want, 1<<20+2000*1000)
	}
	// The root, whose entries changed, and the file.
	since, err := Measure(t.Context(), b, true)
	if err != nil || since.Inodes != 2 || since.Size < 300_000 || since.Size > 400_000 {
		t.Errorf("Measure since it was cloned: %+v, %v, want 2 inodes of 300 kB", since, err)
	}
	all, err := Measure(t.Context(), b, false)
	if err != nil || all.Inodes != whole.Inodes {
		t.Errorf("Measure of all of a clone: %+v, %v, want %d inodes", all, err, whole.Inodes)
	}
}
