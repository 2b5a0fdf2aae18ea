package snapshotd

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/gantryd/gantry/services/diff/difftest"
)

// nobody is a user of the host that has nothing to do with the suite.
const nobody = 65534

// TestAdvisoryNobodyReachesSnapshots is CVE-2021-41103 and CVE-2024-25621: a user
// of the host runs the set-user-id programs of images, whose directories can be
// entered, also where an older version or a generous umask has made them so.
func TestAdvisoryNobodyReachesSnapshots(t *testing.T) {
	needRoot(t)
	cfg := testConfig(t)
	open := filepath.Dir(cfg.Root)
	for _, dir := range []string{open, cfg.Root, filepath.Join(cfg.Root, Overlayfs), filepath.Join(cfg.Root, Overlayfs, "snapshots")} {
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	blobs := difftest.NewBlobs()
	needs := testNeeds(t)
	needs.Content = blobs
	s := openTest(t, cfg, needs)
	root := difftest.File("su", "#!/bin/sh\necho from an image\n")
	root.Mode = 0o4755
	sn := in(t, s, one)
	applyLayer(t, s, blobs, one, prepare(t, sn, "active", ""), difftest.Tar(root))
	program := filepath.Join(s.fs(1), "su")
	if out, err := exec.Command(program).Output(); err != nil {
		t.Fatalf("root runs it: %q, %v", out, err)
	}
	as := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	for what, c := range map[string]*exec.Cmd{
		"run it": exec.Command("/bin/sh", program), "list the root": exec.Command("/bin/ls", cfg.Root),
		"list the snapshots": exec.Command("/bin/ls", s.dir()), "enter": exec.Command("/bin/ls", s.fs(1)),
	} {
		c.SysProcAttr, c.Dir = as, "/"
		if out, err := c.CombinedOutput(); err == nil {
			t.Errorf("nobody may %s: %s", what, out)
		}
	}
	if _, err := os.Stat(open); errors.Is(err, fs.ErrPermission) {
		t.Error(err) // the test would prove nothing
	}
}

// TestAdvisoryNothingOfAnImageIsRun is CVE-2026-41567 and CVE-2019-14271: a helper
// found in the image's own files was run by the host. Nothing is run here but what
// the host has under names in the source, and nobody changes the root directory.
func TestAdvisoryNothingOfAnImageIsRun(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{range .GoFiles}}{{$.Dir}}/{{.}}{{"\n"}}{{end}}`, "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	runs := []string{"/mounter/make.go"} // mkfs, of the host
	for line := range strings.Lines(string(out)) {
		file := strings.TrimSuffix(line, "\n")
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, no := range []string{`"os/exec"`, "unix.Chroot(", "syscall.Chroot(", "unix.Exec(", "syscall.Exec(", "os.StartProcess(", "ForkExec("} {
			allowed := no == `"os/exec"` && slices.ContainsFunc(runs, func(end string) bool { return strings.HasSuffix(file, end) })
			if strings.Contains(string(b), no) && !allowed {
				t.Errorf("%s has %s", file, no)
			}
		}
	}
}
