package shim

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/mount"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts")
	}
}

var tmpfs = mount.Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"size=64k", "nosuid"}}

func TestMountsOnOnePlaceGoAllAtOnce(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := mountAll([]mount.Mount{tmpfs, tmpfs, tmpfs}, dir); err != nil {
		t.Fatal(err)
	}
	// A file in use does not keep them.
	f, err := os.Create(filepath.Join(dir, "used"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var wg sync.WaitGroup
	if err := detachAll(dir, wg.Go); err != nil {
		t.Error(err)
	}
	if _, mounted, known := mountOn(dir); mounted || !known {
		t.Errorf("mounted %t, known %t", mounted, known)
	}
	// What is mounted next is not removed by what is late.
	if err := mountAll([]mount.Mount{tmpfs}, dir); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if _, mounted, _ := mountOn(dir); !mounted {
		t.Error("the next mount is gone")
	}
	for range 2 {
		if err := unmountAll(dir); err != nil {
			t.Error(err)
		}
	}
	if err := detachAll(filepath.Join(dir, "absent"), wg.Go); err != nil {
		t.Error(err)
	}
}

func TestASetOfMountsIsThereWhollyOrNotAtAll(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	bad := mount.Mount{Type: "no-such-file-system", Source: "x"}
	if err := mountAll([]mount.Mount{tmpfs, bad}, dir); !errors.Is(err, unix.ENODEV) {
		t.Errorf("error is %v, want ENODEV", err)
	}
	if _, mounted, _ := mountOn(dir); mounted {
		t.Error("the first one is left")
	}
}

func TestABindIsReadOnlyIfItSaysSo(t *testing.T) {
	needRoot(t)
	from, to := t.TempDir(), t.TempDir()
	m := mount.Mount{Type: "bind", Source: from, Options: []string{"rbind", "ro", "nosuid"}}
	if err := mountAll([]mount.Mount{m}, to); err != nil {
		t.Fatal(err)
	}
	defer unmountAll(to)
	if err := os.WriteFile(filepath.Join(to, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("a write through a read-only bind: %v", err)
	}
	if err := os.WriteFile(filepath.Join(from, "x"), nil, 0o600); err != nil {
		t.Errorf("a write beside it: %v", err)
	}
}
