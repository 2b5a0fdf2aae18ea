package erofs

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
)

// openTest opens a driver in a directory with a plain name.
func openTest(t testing.TB, k kernel.Kernel) *Driver {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("", "erofs-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	d, err := Open(dir, driver.Env{Disk: driver.Files{}, Kernel: k, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return d
}

// layer makes a committed snapshot that adds files to its parents.
func (d *Driver) layer(t testing.TB, id uint64, parents []driver.Ref, files map[string]string) driver.Snapshot {
	t.Helper()
	s := driver.Snapshot{Ref: driver.Ref{ID: id}, Kind: snapshot.Active, Parents: parents}
	must(t, d.Create(t.Context(), s))
	for name, text := range files {
		path := filepath.Join(d.fs(id), name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644))
	}
	as := s
	as.Kind = snapshot.Committed
	if _, err := d.Commit(t.Context(), s, as); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	if !d.Has(t.Context(), s) || !d.Has(t.Context(), as) {
		t.Error("before Finish it is not both, the active and the committed snapshot")
	}
	must(t, d.Finish(t.Context(), s.Ref), d.Finish(t.Context(), s.Ref))
	if !d.Has(t.Context(), as) || d.dirs.Has(id, "fs") || d.dirs.Has(id, "work") {
		t.Error("after Finish there is not the image alone")
	}
	return as
}

// filesOf reads the tree of a snapshot.
func filesOf(t testing.TB, d *Driver, s driver.Snapshot) map[string]string {
	t.Helper()
	f, err := d.Tree(t.Context(), s)
	if err != nil {
		t.Fatalf("Tree: %v", err)
	}
	defer f.Close()
	root := fmt.Sprintf("/proc/self/fd/%d/.", f.Fd())
	files := make(map[string]string)
	for name := range inventory(t, root) {
		if b, err := os.ReadFile(filepath.Join(root, name)); err == nil {
			files[name] = string(b)
		}
	}
	return files
}

// Kernels of every age show the same, and nothing is mounted where anybody else
// could see it.
func TestTreesOnEveryKernel(t *testing.T) {
	for name, k := range map[string]kernel.Kernel{"new": kernel.New(), "old": kernel.Old()} {
		t.Run(name, func(t *testing.T) {
			d := openTest(t, k)
			before, err := os.ReadFile("/proc/self/mountinfo")
			must(t, err)
			one := d.layer(t, 1, nil, map[string]string{"a": "1", "dir/b": "1"})
			two := d.layer(t, 2, []driver.Ref{one.Ref}, map[string]string{"dir/b": "2", "dir/c": "2"})
			if diff := cmp.Diff(filesOf(t, d, one), map[string]string{"a": "1", "dir/b": "1"}); diff != "" {
				t.Errorf("the first layer (-got +want):\n%s", diff)
			}
			want := map[string]string{"a": "1", "dir/b": "2", "dir/c": "2"}
			if diff := cmp.Diff(filesOf(t, d, two), want); diff != "" {
				t.Errorf("both layers (-got +want):\n%s", diff)
			}
			active := driver.Snapshot{Ref: driver.Ref{ID: 3}, Kind: snapshot.Active, Parents: []driver.Ref{two.Ref, one.Ref}}
			must(t, d.Create(t.Context(), active))
			into, done, err := d.Extract(t.Context(), active, false)
			must(t, err)
			root, err := into.Root()
			must(t, err)
			must(t, os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/a", root.Fd()), []byte("3"), 0o644), root.Close(), done())
			want["a"] = "3"
			if diff := cmp.Diff(filesOf(t, d, active), want); diff != "" {
				t.Errorf("the active snapshot (-got +want):\n%s", diff)
			}
			after, err := os.ReadFile("/proc/self/mountinfo")
			must(t, err)
			if strings.Contains(string(after), d.dirs.Dir) {
				t.Errorf("mounts before:\n%s\nand after:\n%s", before, after)
			}
		})
	}
}

func TestFindReadsItsOwnMounts(t *testing.T) {
	d := openTest(t, kernel.New())
	refs := func(ids ...uint64) (all []driver.Ref) {
		for _, id := range ids {
			all = append(all, driver.Ref{ID: id})
		}
		return all
	}
	mounts := func(s driver.Snapshot) []mount.Mount {
		m, err := d.mounts(s)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, c := range []struct {
		s    driver.Snapshot
		want driver.Found
	}{
		{driver.Snapshot{Ref: driver.Ref{ID: 5}, Kind: snapshot.Active}, driver.Found{ID: 5, Write: true, Alone: true}},
		{driver.Snapshot{Ref: driver.Ref{ID: 5}, Kind: snapshot.Active, Parents: refs(4)}, driver.Found{ID: 5, Write: true}},
		{driver.Snapshot{Ref: driver.Ref{ID: 5}, Kind: snapshot.Active, Parents: refs(4, 3, 1)}, driver.Found{ID: 5, Write: true}},
		{driver.Snapshot{Ref: driver.Ref{ID: 5}, Kind: snapshot.View}, driver.Found{ID: 5, Alone: true}},
		{driver.Snapshot{Ref: driver.Ref{ID: 5}, Kind: snapshot.View, Parents: refs(4)}, driver.Found{ID: 4}},
		{driver.Snapshot{Ref: driver.Ref{ID: 5}, Kind: snapshot.View, Parents: refs(4, 3)}, driver.Found{ID: 4}},
	} {
		m := mounts(c.s)
		if got, ok := d.Find(m); !ok || got != c.want {
			t.Errorf("Find(%v): %+v, %t; want %+v", m, got, ok, c.want)
		}
	}
	upper := mount.Mount{Type: "overlay", Options: []string{"upperdir=" + d.fs(5)}}
	if got, ok := d.Find([]mount.Mount{upper}); !ok || got != (driver.Found{ID: 5, Write: true, Alone: true}) {
		t.Errorf("Find of an upper directory alone: %+v, %t", got, ok)
	}
	for _, m := range [][]mount.Mount{
		nil, {{Type: "bind", Source: "/etc"}}, {{Type: "bind", Source: d.dirs.Path(5)}}, {{Type: "erofs", Source: d.fs(5)}},
		{{Type: "bind", Source: d.fs(5) + "/../../6/fs"}}, {{Type: "ext4", Source: d.imagePath(5)}},
		slices.Repeat(mounts(driver.Snapshot{Ref: driver.Ref{ID: 5}, Kind: snapshot.View, Parents: refs(4)}), 2),
	} {
		if got, ok := d.Find(m); ok {
			t.Errorf("Find(%v): %+v, want nothing", m, got)
		}
	}
}

// Where images cannot be mounted, Open says so.
func TestOpenInAUserNamespaceSaysWhyNot(t *testing.T) {
	if os.Getenv("EROFS_TEST_ROOT") != "" {
		_, err := Open(os.Getenv("EROFS_TEST_ROOT"), driver.Env{Disk: driver.Files{}, Kernel: kernel.New(), Log: slog.New(slog.DiscardHandler)})
		fmt.Printf("Open: %v\n", err)
		return
	}
	needRoot(t)
	c := exec.CommandContext(t.Context(), "unshare", "-Urm", os.Args[0], "-test.run=^"+t.Name()+"$")
	c.Env = append(os.Environ(), "EROFS_TEST_ROOT="+t.TempDir())
	out, err := c.CombinedOutput()
	if err != nil && strings.Contains(string(out), "unshare failed") {
		t.Skipf("no user namespaces here: %s", out)
	}
	if err != nil || !strings.Contains(string(out), "Open: erofs: operation not permitted") {
		t.Errorf("%v: %s", err, out)
	}
}
