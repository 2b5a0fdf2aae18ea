package kv_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/kv"
)

// smallDisk mounts a file system of the given size for the test.
func smallDisk(t *testing.T, size int64) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a small disk and fills it")
	}
	image := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-m", "0", image},
		{"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("needs %s: %v: %s", args[0], err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

// fillDisk writes a file until n bytes are left.
func fillDisk(t *testing.T, dir string, left int64) (name string) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "filling"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := int64(st.Bavail)*st.Bsize - left; n > 0 || left == 0; n -= 1 << 20 {
		// To the last block, if nothing is to be left.
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			break
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func TestAFullDiskRefusesUpdatesAndLetsDeletesThrough(t *testing.T) {
	disk := smallDisk(t, 320<<20)
	o := kv.Options{Dir: filepath.Join(disk, "db"), Owner: "contentd", Schema: 1}
	db := open(t, o)
	for i := range 500 {
		put(t, db, string(kv.Key("k", strings.Repeat("x", i))), strings.Repeat("v", 1000))
	}
	update := func() error {
		return db.Update(t.Context(), func(tx *kv.Tx) error { return tx.Put([]byte("new"), nil) })
	}
	release := func(i int) error {
		return db.Release(t.Context(), func(tx *kv.Tx) error { return tx.Delete(kv.Key("k", strings.Repeat("x", i))) })
	}

	filling := fillDisk(t, disk, 40<<20)
	wantKind(t, update(), errdefs.ErrResourceExhausted)
	if err := release(0); err != nil {
		t.Errorf("Release with 40 MiB left: %v", err)
	}
	if err := os.Remove(filling); err != nil {
		t.Fatal(err)
	}
	if err := update(); err != nil {
		t.Errorf("Update after there was room again: %v", err)
	}

	filling = fillDisk(t, disk, 0)
	wantKind(t, update(), errdefs.ErrResourceExhausted)
	for i := 1; i < 500; i++ {
		if err := release(i); err != nil {
			t.Fatalf("Release %d on a full disk: %v", i, err)
		}
	}
	// It also opens, and still lets go.
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(t, o)
	if err := release(499); err != nil {
		t.Errorf("Release after opening on a full disk: %v", err)
	}
	wantKind(t, update(), errdefs.ErrResourceExhausted)
	_ = db.View(func(tx *kv.Tx) error {
		if got := keys(tx, "k", ""); len(got) != 0 {
			t.Errorf("%d keys are left", len(got))
		}
		return nil
	})

	// Full to the last block, with the ballast gone: what frees space goes on in
	// the log that there is, and when that is full it is refused, and alive.
	if err := os.Rename(filling, filepath.Join(disk, "more")); err != nil {
		t.Fatal(err)
	}
	filling = fillDisk(t, disk, 0)
	if err := release(0); err != nil {
		t.Errorf("Release with nothing left: %v", err)
	}
	for i := 0; ; i++ {
		if err := db.Release(t.Context(), func(tx *kv.Tx) error { return tx.Put([]byte("larger"), make([]byte, 10_000)) }); err != nil {
			wantKind(t, err, errdefs.ErrResourceExhausted)
			t.Logf("the log took %d", i)
			break
		}
		if i > 300 {
			t.Fatal("it takes more than a log can")
		}
	}
	wantKind(t, update(), errdefs.ErrResourceExhausted)
	_, err := kv.Open(kv.Options{Dir: filepath.Join(disk, "other"), Owner: "contentd", Schema: 1})
	wantKind(t, err, errdefs.ErrResourceExhausted)
	if err := os.Remove(filling); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(disk, "more")); err != nil {
		t.Fatal(err)
	}
	if err := update(); err != nil {
		t.Errorf("Update after there was room again: %v", err)
	}
	if _, err := os.Stat(filepath.Join(o.Dir, "ballast")); err != nil {
		t.Errorf("the ballast is not back: %v", err)
	}
}

func TestADatabaseWhoseDiskIsFullFromTheStartOpens(t *testing.T) {
	disk := smallDisk(t, 320<<20)
	o := kv.Options{Dir: filepath.Join(disk, "db"), Owner: "contentd", Schema: 1}
	db := open(t, o)
	put(t, db, "a", "1")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	fillDisk(t, disk, 0)
	db = open(t, o)
	if err := db.Release(t.Context(), func(tx *kv.Tx) error { return tx.Delete([]byte("a")) }); err != nil {
		t.Errorf("Release: %v", err)
	}
}
