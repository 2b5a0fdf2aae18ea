package loop

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// A kernel that does not mount files mounts loop devices.
func TestLoopDeviceHasTheFileAndEndsWithItsUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: loop devices")
	}
	path := filepath.Join(t.TempDir(), "file")
	want := bytes.Repeat([]byte("contents"), 1024)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dev, err := Attach(t.Context(), f, true, path)
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	got := make([]byte, len(want))
	_, err = dev.ReadAt(got, 0)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s has other contents (%v)", dev.Name(), err)
	}
	backing := filepath.Join("/sys/block", filepath.Base(dev.Name()), "loop/autoclear")
	if b, err := os.ReadFile(backing); err != nil || string(b) != "1\n" {
		t.Errorf("%s: %q, %v; want it to end with its user", backing, b, err)
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
}
