package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/backup/backuptest"
	"github.com/gantryd/gantry/services/fsck/fscktest"
	"github.com/gantryd/gantry/services/image"
	"github.com/gantryd/gantry/services/namespace"
)

type noCloser struct{}

func (noCloser) Close() error { return nil }

func TestFsckTellsWhatIsWrongAndForWhom(t *testing.T) {
	d := newDesk(t)
	m := fscktest.NewMemory()
	d.own = &operator{checker: m, Closer: noCloser{}}
	bad, good := m.Add("one"), m.Add("two")
	golden(t, "fsck-ok.txt", d.want("fsck", "content"))
	m.Corrupt(bad)
	img := image.Image{Name: "web:1"}
	img.Target.Digest, img.Target.Size = digest.Digest(bad), 3
	img.Target.MediaType = "application/vnd.oci.image.manifest.v1+json"
	if _, err := d.client.Images.In(namespace.Scope{Name: "default"}).Create(t.Context(), img, image.Options{}); err != nil {
		t.Fatal(err)
	}

	out, errs, code := d.ctl("fsck", "content")
	if code != 1 || !strings.Contains(errs, "--repair") {
		t.Errorf("fsck = %d, %q", code, errs)
	}
	golden(t, "fsck-corrupt.txt", out)
	if out, errs, code := d.ctl("fsck", "content", "--quick"); code != 0 || errs != "" || !strings.Contains(out, "ok") {
		t.Errorf("fsck --quick = %d, %q, %q", code, out, errs)
	}
	if _, errs, code := d.ctl("fsck", "content", good, "--rate", "64kB"); code != 0 || errs != "" {
		t.Errorf("fsck of the other = %d, %q", code, errs)
	}

	out, _, code = d.ctl("fsck", "content", "--repair", "-o", "json", bad)
	var rows []map[string]any
	if err := json.Unmarshal([]byte(out), &rows); err != nil || code != 1 || len(rows) != 1 {
		t.Fatalf("fsck --repair = %d, %s, %v", code, out, err)
	}
	help := d.want("fsck", "content", "--help")
	_, fields, _ := strings.Cut(help, "Fields with -o json:")
	for key := range rows[0] {
		if !strings.Contains(fields, key) {
			t.Errorf("field %s is not in its help", key)
		}
	}
	if m.Present(bad) {
		t.Error("it was not repaired")
	}
	if out := d.want("fsck", "content", "-o", "json"); out != "[]\n" {
		t.Errorf("afterwards: %s", out)
	}
}

func TestFsckMistakes(t *testing.T) {
	d := newDesk(t)
	d.fail(1, "nobody answers", "fsck", "content")
	d.own = &operator{checker: fscktest.NewMemory(), Closer: noCloser{}}
	d.fail(1, "not found", "fsck", "content", digest.FromString("x").String())
	d.fail(2, "whole digest", "fsck", "content", "e3b0c442")
	d.fail(2, "--quick", "fsck", "content", "--quick", digest.FromString("x").String())
	for _, rate := range []string{"fast", "-1", "0", "100XB", "1e99", "NaN"} {
		d.fail(2, "bytes", "fsck", "content", "--rate="+rate)
	}
}

func TestSizes(t *testing.T) {
	for s, want := range map[string]int64{"": 0, "7": 7, "100MiB": 100 << 20, "1.5k": -1, "1.5K": 1536, "2 GB": 2e9, "64kB": 64e3, "1B": 1} {
		if got, err := parseSize(s); got != max(want, 0) || (err != nil) != (want < 0) {
			t.Errorf("parseSize(%q): %d, %v", s, got, err)
		}
	}
}

func TestBackupAndRestore(t *testing.T) {
	d := newDesk(t)
	m := backuptest.NewMemory()
	d.own = &operator{keeper: m, Closer: noCloser{}}
	m.Set("a", "1")
	file := filepath.Join(t.TempDir(), "content.backup")
	if out := d.want("backup", "content", "-f", file); out != "" {
		t.Errorf("backup prints %q", out)
	}
	m.Set("a", "2")
	golden(t, "restore.txt", d.want("restore", "content", "-f", file))
	if m.Get("a") != "1" {
		t.Errorf("a is %q", m.Get("a"))
	}
	d.in = d.want("backup", "content", "-f", "-")
	m.Set("a", "3")
	if out := d.want("restore", "content", "-o", "json", "-f", "-"); !strings.Contains(out, `"records": 1`) {
		t.Errorf("restore -o json prints %s", out)
	}
	if m.Get("a") != "1" {
		t.Errorf("a is %q", m.Get("a"))
	}

	if err := os.WriteFile(file, []byte("no backup"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.fail(1, "no whole backup", "restore", "content", "-f", file)
	d.fail(1, "no such file", "restore", "content", "-f", file+".none")
	d.fail(1, "no such file", "backup", "content", "-f", filepath.Join(file+".none", "x"))
	d.fail(2, "--file", "restore", "content")
	d.fail(2, "--file", "backup", "content")
	if names, err := os.ReadDir(filepath.Dir(file)); err != nil || len(names) != 1 {
		t.Errorf("what is left: %v, %v", names, err)
	}
}
