package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantryd/gantry/services/ident"
)

func TestArgv(t *testing.T) {
	for _, tt := range []struct {
		line string
		want argv
		ok   bool
	}{
		{"-namespace n -address /a -publish-binary /b -id i start", argv{namespace: "n", address: "/a", id: "i", action: "start"}, true},
		{"-namespace n -address /a -publish-binary  -id i -debug serve", argv{namespace: "n", address: "/a", id: "i", debug: true, action: "serve"}, true},
		{"-namespace n -address /a -id i -bundle /x delete", argv{namespace: "n", address: "/a", id: "i", bundle: "/x", action: "delete"}, true},
		{"-namespace n -id i -listener 3 serve", argv{namespace: "n", id: "i", listener: 3, action: "serve"}, true},
		{"-namespace n -id i -listener 3 start", argv{}, false},
		{"-namespace n -id i -listener -1 serve", argv{}, false},
		{"-v", argv{version: true}, true},
		{"-info", argv{info: true}, true},
		{"-namespace n -id i", argv{}, false},
		{"-namespace n -id i stop", argv{}, false},
		{"-namespace n -id ../i start", argv{}, false},
		{"-namespace n/m -id i start", argv{}, false},
		{"-id i start", argv{}, false},
		{"-nonsense start", argv{}, false},
		{"", argv{}, false},
	} {
		got, err := parseArgv(strings.Split(tt.line, " "))
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%q: %+v, %v", tt.line, got, err)
		}
	}
}

func TestSocketPathIsContainerds(t *testing.T) {
	got, err := socketPath("", "/run/containerd/containerd.sock", "default", "t1")
	// sha256 of "/run/containerd/containerd.sock/default/t1"
	if err != nil || filepath.Dir(got) != "/run/containerd/s" || len(filepath.Base(got)) != 64 {
		t.Errorf("path is %s, %v", got, err)
	}
	if _, err := socketPath("/"+strings.Repeat("x", 42), "a", "n", "i"); err == nil {
		t.Error("a directory of 43 bytes fits")
	}
	if _, err := socketPath("/"+strings.Repeat("x", 41), "a", "n", "i"); err != nil {
		t.Errorf("a directory of 42 bytes does not fit: %v", err)
	}
	if _, err := socketPath("relative", "a", "n", "i"); err == nil {
		t.Error("a relative directory is taken")
	}
}

func FuzzArgv(f *testing.F) {
	f.Add("-namespace n -address /a -publish-binary /b -id i start")
	f.Add("-v")
	f.Add("-namespace n -id i -listener 3 serve")
	f.Add("-id=i -namespace=n -- delete")
	f.Fuzz(func(t *testing.T, line string) {
		a, err := parseArgv(strings.Split(line, " "))
		if err != nil || a.version || a.info {
			return
		}
		if ident.Check(a.id) != nil || ident.Check(a.namespace) != nil || a.action == "" {
			t.Errorf("%q is %+v", line, a)
		}
		if path, err := socketPath("", a.address, a.namespace, a.id); err != nil || filepath.Dir(path) != defaultSocketDir {
			t.Errorf("%q: socket %q, %v", line, path, err)
		}
	})
}
