package client

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got; -update writes it):\n%s", file, diff)
	}
}

func specOptions() SpecOptions {
	return SpecOptions{Namespace: "default", ID: "c1", Program: Program{Args: []string{"/bin/true"}}}
}

func TestSpecIsTheGoldenOne(t *testing.T) {
	terminal := specOptions()
	terminal.Program.Terminal = true
	terminal.Program.User = "1000:1001"
	terminal.Program.Cwd = "/srv"
	terminal.Program.Env = []string{"A=1", "PATH=/bin", "A=2"}
	terminal.ReadOnly = true
	terminal.HostNet = true
	terminal.Mounts = []specs.Mount{{Destination: "/data", Type: "bind", Source: "/srv/data", Options: []string{"rbind", "ro"}}}
	for name, o := range map[string]SpecOptions{"spec.json": specOptions(), "spec-terminal.json": terminal} {
		s, err := NewSpec(o)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, append(b, '\n'))
	}
}

// TestSpecIsSafe says of every spec what the golden files show of two.
func TestSpecIsSafe(t *testing.T) {
	s, err := NewSpec(specOptions())
	if err != nil {
		t.Fatal(err)
	}
	if c := s.Process.Capabilities; len(c.Inheritable) > 0 || len(c.Ambient) > 0 {
		t.Errorf("inheritable %v and ambient %v capabilities; want none", c.Inheritable, c.Ambient)
	}
	if d := s.Linux.Resources.Devices; len(d) == 0 || d[0].Allow || d[0].Access != "rwm" || d[0].Major != nil {
		t.Errorf("the first rule for devices is %+v; want one that denies all", d)
	}
	for _, dest := range []string{"/dev", "/proc"} {
		if !slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == dest }) {
			t.Errorf("nothing is mounted on %s: what the image has there would be used", dest)
		}
	}
	if !slices.Contains(s.Linux.MaskedPaths, "/sys/devices/virtual/powercap") {
		t.Error("powercap can be read")
	}
	if !slices.Contains(s.Process.User.AdditionalGids, s.Process.User.GID) {
		t.Error("the additional groups lack the first one")
	}
}

func TestSpecRefuses(t *testing.T) {
	for name, change := range map[string]func(*SpecOptions){
		"no program":                        func(o *SpecOptions) { o.Program.Args = nil },
		"an empty program":                  func(o *SpecOptions) { o.Program.Args = []string{""} },
		"an argument with a zero byte":      func(o *SpecOptions) { o.Program.Args = []string{"a\x00b"} },
		"a bad id":                          func(o *SpecOptions) { o.ID = "../c" },
		"a bad namespace":                   func(o *SpecOptions) { o.Namespace = "" },
		"a relative working directory":      func(o *SpecOptions) { o.Program.Cwd = "srv" },
		"a working directory in /proc":      func(o *SpecOptions) { o.Program.Cwd = "/proc/self/fd/7" },
		"/proc as working directory":        func(o *SpecOptions) { o.Program.Cwd = "/proc" },
		"/proc as working directory, too":   func(o *SpecOptions) { o.Program.Cwd = "//x/../proc/./1" },
		"an environment without =":          func(o *SpecOptions) { o.Program.Env = []string{"A"} },
		"an environment without key":        func(o *SpecOptions) { o.Program.Env = []string{"=a"} },
		"an environment with a zero byte":   func(o *SpecOptions) { o.Program.Env = []string{"A=\x00"} },
		"a user that is too large":          func(o *SpecOptions) { o.Program.User = "4294967296" },
		"a mount over /proc":                func(o *SpecOptions) { o.Mounts = []specs.Mount{{Destination: "/proc/sys"}} },
		"a mount over /proc by another way": func(o *SpecOptions) { o.Mounts = []specs.Mount{{Destination: "/a/../proc"}} },
		"a mount over /sys":                 func(o *SpecOptions) { o.Mounts = []specs.Mount{{Destination: "/sys"}} },
		"a mount over the root":             func(o *SpecOptions) { o.Mounts = []specs.Mount{{Destination: "/"}} },
		"a relative mount":                  func(o *SpecOptions) { o.Mounts = []specs.Mount{{Destination: "data"}} },
	} {
		o := specOptions()
		change(&o)
		if s, err := NewSpec(o); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: NewSpec = %v, %v; want an invalid argument", name, s, err)
		}
	}
}

func TestHostnameFitsTheKernel(t *testing.T) {
	o := specOptions()
	o.ID = strings.Repeat("a", 63) + "-" + strings.Repeat("b", 12)
	s, err := NewSpec(o)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat("a", 63); s.Hostname != want {
		t.Errorf("hostname %q; want %q", s.Hostname, want)
	}
}

func TestProgramOverImage(t *testing.T) {
	image := ocispec.ImageConfig{
		Entrypoint: []string{"/entry"},
		Cmd:        []string{"default"},
		Env:        []string{"A=image", "B=image"},
		WorkingDir: "/srv",
		User:       "7",
	}
	for _, c := range []struct {
		name string
		p    Program
		want Program
	}{
		{"the image's own", Program{}, Program{
			Args: []string{"/entry", "default"}, Env: []string{"A=image", "B=image"}, Cwd: "/srv", User: "7"}},
		{"the caller's", Program{Args: []string{"x", "y"}, Env: []string{"A=mine"}, Cwd: "/", User: "0", Terminal: true}, Program{
			Args: []string{"/entry", "x", "y"}, Env: []string{"A=image", "B=image", "A=mine"}, Cwd: "/", User: "0", Terminal: true}},
	} {
		if diff := cmp.Diff(c.want, c.p.Over(image)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// TestProgramSharesNothingWithTheImage keeps the environment of one container
// out of another's that is made from the same image at the same time.
func TestProgramSharesNothingWithTheImage(t *testing.T) {
	env := append(make([]string, 0, 8), "A=image")
	image := ocispec.ImageConfig{Env: env, Cmd: []string{"x"}}
	one := Program{Env: []string{"B=one"}}.Over(image)
	two := Program{Env: []string{"B=two"}}.Over(image)
	if one.Env[1] != "B=one" || two.Env[1] != "B=two" {
		t.Errorf("environments %v and %v share memory", one.Env, two.Env)
	}
}
