package taskd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestRuntimesAreFoundAsContainerdFindsThem(t *testing.T) {
	dir := t.TempDir()
	touch := func(name string, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ownBeside := touch("beside/"+OwnShim, 0o755)
	touch("path1/"+OwnShim, 0o755)
	kataPath := touch("path2/containerd-shim-kata-v2", 0o755)
	touch("path1/containerd-shim-kata-v2", 0o644) // not executable
	touch("beside/containerd-shim-kata-v2", 0o755)
	runscBeside := touch("beside/containerd-shim-runsc-v1", 0o755)
	custom := touch("opt/my-shim", 0o755)
	plain := touch("opt/plain", 0o644)
	if err := os.MkdirAll(filepath.Join(dir, "path1/containerd-shim-dir-v1"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	touch("containerd-shim-here-v1", 0o755)
	f := finder{
		runtimes: map[string]string{"io.containerd.runc.v2": OwnShim, "mine": custom, "gone": filepath.Join(dir, "gone"), "kata": "containerd-shim-kata-v2"},
		beside:   filepath.Join(dir, "beside"),
		path:     []string{"", ".", filepath.Join(dir, "path1"), filepath.Join(dir, "path2")},
	}
	for name, want := range map[string]string{
		"io.containerd.runc.v2":                  ownBeside,
		"io.containerd.gantry.v1":                ownBeside,
		"io.containerd.kata.v2":                  kataPath,
		"kata.v2":                                kataPath,
		"a.b.c.d.runsc.v1":                       runscBeside,
		"mine":                                   custom,
		custom:                                   custom,
		filepath.Join(dir, "opt/../opt/my-shim"): custom,
	} {
		if got, err := f.find(name); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", name, got, err, want)
		}
	}
	if got, err := f.find("kata"); err != nil || got != filepath.Join(dir, "beside/containerd-shim-kata-v2") {
		t.Errorf("a name from the config: %q, %v; want the one beside us", got, err)
	}
	for name, want := range map[string]string{
		"":                          "invalid runtime name",
		"runc":                      "invalid runtime name",
		".v2":                       "invalid runtime name",
		"io.containerd.runc.":       "invalid runtime name",
		"opt/my-shim":               "invalid runtime name",
		"./opt/my-shim.v1":          "invalid runtime name",
		"../x.v1":                   "invalid runtime name",
		"io.containerd.a\x00b.v1":   "invalid runtime name",
		"io.containerd.a b.v1":      "invalid runtime name",
		"io.containerd.a\nb.v1":     "invalid runtime name",
		"io.containerd.none.v3":     `runtime "io.containerd.none.v3" binary not installed "containerd-shim-none-v3": file does not exist`,
		"io.containerd.here.v1":     "binary not installed",
		"io.containerd.dir.v1":      "binary not installed",
		"gone":                      "binary not installed",
		filepath.Join(dir, "gone"):  "invalid custom binary path",
		filepath.Join(dir, "path1"): "is not executable",
		plain:                       "is not executable",
	} {
		got, err := f.find(name)
		wantKind(t, name, err, errdefs.ErrInvalidArgument)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %q, %v; want %s", name, got, err, want)
		}
	}
}

func TestConfigReportsEveryMistake(t *testing.T) {
	if err := Default().Check(); err != nil {
		t.Errorf("the default config: %v", err)
	}
	err := Config{
		Root: "root", Address: "unix:///x", ShimSockets: "s",
		Runtimes: map[string]string{"a.v1": "", "": "x", "b.v1": "bin/x"},
	}.Check()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"root:", "state:", "address:", "shim_sockets:", `"a.v1"`, `"b.v1"`, `"" = "x"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: nothing of %s", err, want)
		}
	}
	c := Default()
	c.ShimSockets = "/" + strings.Repeat("x", shimSocketsMax)
	if err := c.Check(); err == nil {
		t.Error("a directory too long for sockets: no error")
	}
}

func TestProcessIsTheOneThatWasBorn(t *testing.T) {
	p := newProcesses(Default(), Needs{})
	defer p.close()
	self, err := p.identify(os.Getpid())
	if err != nil || self.Birth == 0 {
		t.Fatalf("identify: %+v, %v", self, err)
	}
	ended, err := p.watch(self)
	if err != nil {
		t.Fatalf("watch of a process that lives: %v", err)
	}
	select {
	case <-ended:
		t.Error("we have ended")
	default:
	}
	// Another that had our pid before us.
	self.Birth--
	_, err = p.watch(self)
	wantKind(t, "watch of another of that pid", err, errdefs.ErrNotFound)
	if err := p.signal(self, 9); err != nil {
		t.Errorf("signal to another of that pid: %v", err)
	}
}
