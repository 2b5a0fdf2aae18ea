package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestShell(t *testing.T) {
	for _, c := range []struct {
		line   string
		out    string
		status int
	}{
		{"echo hello there", "hello there\n", 0},
		{"echo a; echo b", "a\nb\n", 0},
		{"false", "", 1},
		{"false; exit", "", 1},
		{"exit 42; echo never", "", 42},
		{"sleep 0.01; exit 3", "", 3},
		{"nothing", "", 127},
		{"", "", 0},
		{"counter 0.001 3", "1\n2\n3\n", 0},
		{"/bin/echo 'quoted'", "quoted\n", 0},
	} {
		var out, errs bytes.Buffer
		if got := run("sh", streams{strings.NewReader(""), &out, &errs}, []string{"-c", c.line}); got != c.status || out.String() != c.out {
			t.Errorf("sh -c %q = %d, %q (%s); want %d, %q", c.line, got, &out, &errs, c.status, c.out)
		}
	}
}

func TestShellReadsLines(t *testing.T) {
	var out, errs bytes.Buffer
	s := streams{strings.NewReader("echo one\necho two\nexit 5\necho three\n"), &out, &errs}
	if got := run("sh", s, nil); got != 5 || out.String() != "one\ntwo\n" {
		t.Errorf("sh = %d, %q (%s)", got, &out, &errs)
	}
}
