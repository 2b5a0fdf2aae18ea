package conformance

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDebian imports a real root file system, made by debootstrap and packed by
// umoci, and runs a program that reads a lot of it.
func TestDebian(t *testing.T) {
	needRoot(t)
	archive := debian(t)
	s := startSuite(t)
	s.ctl("image", "import", "--name", "debian:12", archive)
	out := s.ctl("run", "--rm", "debian:12", "dpkg", "-l")
	for _, want := range []string{"ii  dpkg", "ii  libc6", "ii  bash"} {
		if !strings.Contains(out, want) {
			t.Errorf("dpkg -l does not list %q:\n%s", want, out)
		}
	}
	if out := s.ctl("run", "--rm", "debian:12", "sh", "-c", "find / -xdev -perm -4000 | sort"); !strings.Contains(out, "/bin/su") && !strings.Contains(out, "/usr/bin/su") {
		t.Errorf("setuid bits are lost; found only %q", out)
	}
}

// debian returns an OCI archive of a minimal Debian. It is made once and kept:
// debootstrap takes a minute.
func debian(t *testing.T) string {
	t.Helper()
	for _, tool := range []string{"debootstrap", "umoci"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: make deps installs it", tool)
		}
	}
	archive, err := filepath.Abs("../.build/debian12.tar")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(archive); err == nil {
		return archive
	}
	dir := t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		c := exec.Command(name, args...)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
	}
	run("umoci", "init", "--layout", "oci")
	run("umoci", "new", "--image", "oci:debian12")
	run("umoci", "unpack", "--image", "oci:debian12", "bundle")
	run("debootstrap", "--variant=minbase", "bookworm", "bundle/rootfs")
	run("umoci", "repack", "--image", "oci:debian12", "bundle")
	run("umoci", "config", "--image", "oci:debian12", "--config.cmd", "/bin/bash")
	if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
		t.Fatal(err)
	}
	run("tar", "-C", "oci", "-cf", archive+".new", ".")
	if err := os.Rename(archive+".new", archive); err != nil {
		t.Fatal(err)
	}
	return archive
}
