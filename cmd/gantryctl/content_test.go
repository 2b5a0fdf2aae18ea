package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/namespace"
)

// blobs are those of the default namespace.
func (d *desk) blobs() content.Store {
	return d.client.Content.In(namespace.Scope{Name: "default"})
}

// put makes a blob.
func (d *desk) put(body string, labels map[string]string) digest.Digest {
	d.t.Helper()
	r, err := d.client.In("default").Put(d.t.Context(), strings.NewReader(body), client.PutOptions{Labels: labels})
	if err != nil {
		d.t.Fatal(err)
	}
	return r.Digest
}

// begin leaves an ingest behind.
func (d *desk) begin(ref, body string, total int64) {
	d.t.Helper()
	w, err := d.blobs().Writer(d.t.Context(), content.WriterOptions{Ref: ref, Total: total})
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := w.Write([]byte(body)); err != nil {
		d.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		d.t.Fatal(err)
	}
}

// file writes a file.
func (d *desk) file(body string) string {
	d.t.Helper()
	name := filepath.Join(d.t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(body), 0o644); err != nil {
		d.t.Fatal(err)
	}
	return name
}

// want1 decodes the only row of a list.
func want1[T any](t *testing.T, out string) T {
	t.Helper()
	var rows []T
	if err := json.Unmarshal([]byte(out), &rows); err != nil || len(rows) != 1 {
		t.Fatalf("want one row of JSON, got %s: %v", out, err)
	}
	return rows[0]
}

// times stand for those of tables and sheets, which differ from run to run.
var times = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|\b\d+m?\d*s\b`)

func timeless(s string) string {
	return times.ReplaceAllStringFunc(s, func(s string) string {
		if len(s) > len("00s") {
			return "2026-11-21 10:00:00"
		}
		return "0s"
	})
}

// aLot of labels of a blob, some of which are not nice.
var aLot = map[string]string{
	"a": "1",
	"containerd.io/distribution.source.docker.io": "library/alpine",
	"containerd.io/gc.ref.content.l.0":            digest.FromString("layer").String(),
	"evil":                                        "\x1b[2Jgone\nnew line",
}

func TestContentTables(t *testing.T) {
	d := newDesk(t)
	golden(t, "content-ls-empty.txt", d.want("content", "ls"))
	golden(t, "content-ingests-empty.txt", d.want("content", "ingests"))
	d.put("hello\n", map[string]string{"a": "1"})
	some := d.put(strings.Repeat("some bytes", 1<<16), aLot)
	d.put("", nil)
	golden(t, "content-ls.txt", timeless(d.want("content", "ls")))
	golden(t, "content-ls-full.txt", timeless(d.want("content", "ls", "--full")))
	golden(t, "content-ls-quiet.txt", d.want("content", "ls", "-q"))
	golden(t, "content-ls-filter.txt", d.want("content", "ls", "-q", "--filter", "labels.a==1"))
	golden(t, "content-info.txt", timeless(d.want("content", "info", some.String(), "5891b5b522d5")))
	d.begin("put-"+some.String(), strings.Repeat("x", 999), 1000)
	d.begin("evil\x1b[2J\n", "", 0)
	golden(t, "content-ingests.txt", timeless(d.want("content", "ingests")))
	golden(t, "content-verify.txt", d.want("content", "verify", "--all"))
}

func TestContentHelpIsTheGoldenOne(t *testing.T) {
	d := newDesk(t)
	for _, args := range []string{"", "ls", "info", "get", "put", "label", "rm", "verify", "du", "ingests", "abort"} {
		name := strings.TrimSuffix("help-content-"+args, "-") + ".txt"
		golden(t, name, d.want(append([]string{"content"}, append(strings.Fields(args), "--help")...)...))
	}
}

func TestContentJSONHasTheFieldsThatHelpNames(t *testing.T) {
	d := newDesk(t)
	for _, args := range [][]string{{"ls"}, {"ingests"}, {"verify", "--all"}} {
		if got := d.want(append(append([]string{"content"}, args...), "-o", "json")...); got != "[]\n" {
			t.Errorf("content %v of nothing prints %q", args, got)
		}
	}
	some := d.put("hello\n", aLot)
	d.begin("r", "x", 10)
	file := d.file("other")
	for _, args := range [][]string{
		{"ls"}, {"info", some.String()}, {"label", some.String(), "b=2"}, {"put", file}, {"get", "-f", file, some.String()},
		{"verify", "--all"}, {"ingests"},
	} {
		var rows []map[string]any
		if err := json.Unmarshal([]byte(d.want(append(append([]string{"content"}, args...), "-o", "json")...)), &rows); err != nil || len(rows) == 0 {
			t.Fatalf("content %v: %v, %v", args, rows, err)
		}
		_, fields, _ := strings.Cut(d.want("content", args[0], "--help"), "Fields with -o json")
		for key := range rows[0] {
			if !strings.Contains(fields, key) {
				t.Errorf("content %v: field %s is not in its help", args, key)
			}
		}
	}
}

func TestContentLabel(t *testing.T) {
	d := newDesk(t)
	some := d.put("hello\n", map[string]string{"tier": "web", "keep": "1"})
	if got, want := d.want("content", "label", some.String(), "app=a=b", "tier-", "containerd.io/gc.root=x", "absent-"), "app=a=b\ncontainerd.io/gc.root=x\nkeep=1\n"; got != want {
		t.Errorf("it prints %q; want %q", got, want)
	}
}

func TestContentRmAndAbort(t *testing.T) {
	d := newDesk(t)
	a, b := d.put("a", nil), d.put("b", nil)
	out, errs, code := d.ctl("content", "rm", a.String(), digest.FromString("none").String(), b.Encoded()[:10])
	if code != 1 || out != a.String()+"\n"+b.String()+"\n" || !strings.Contains(errs, digest.FromString("none").String()) || strings.Count(errs, "\n") != 1 {
		t.Errorf("rm = %d, %q, %q", code, out, errs)
	}
	d.begin("r1", "x", 0)
	d.begin("r2", "x", 0)
	out, errs, code = d.ctl("content", "abort", "r1", "none", "r2")
	if code != 1 || out != "r1\nr2\n" || !strings.Contains(errs, "content ingests") {
		t.Errorf("abort = %d, %q, %q", code, out, errs)
	}
	if got := d.want("content", "ls", "-q") + d.want("content", "ingests", "-o", "json"); got != "[]\n" {
		t.Errorf("it left %s", got)
	}
}

func TestContentMistakesAreOneLineThatSaysWhatToDo(t *testing.T) {
	d := newDesk(t)
	some := d.put("hello\n", nil)
	none := digest.FromString("none").String()
	for _, verb := range []string{"info", "rm", "get", "verify"} {
		d.fail(1, "gantryctl -n default content ls", "content", verb, none)
		d.fail(1, "gantryctl -n default content ls", "content", verb, none[:20])
		d.fail(1, "no digest", "content", verb, "demo:latest")
		d.fail(2, "gantryctl content "+verb+" --help", "content", verb)
	}
	d.fail(1, "content ls", "content", "label", none, "a=1")
	d.fail(2, "KEY=VALUE", "content", "label", some.String(), "a")
	d.fail(2, "KEY=VALUE", "content", "label", some.String(), "=1")
	d.fail(2, "twice", "content", "label", some.String(), "a=1", "a-")
	d.fail(1, "label key and value length", "content", "label", some.String(), "a="+strings.Repeat("x", 5000))
	d.fail(1, "no such file", "content", "put", "/nowhere/file")
	d.fail(1, "is a directory", "content", "put", t.TempDir())
	d.fail(1, "nothing of it is kept", "content", "put", "--digest", none, d.file("other"))
	d.fail(2, "--digest", "content", "put", "--digest", "sha256:abc", d.file("other"))
	d.fail(2, "KEY=VALUE", "content", "put", "--label", "a", d.file("other"))
	d.fail(1, "no such file", "content", "get", "-f", "/nowhere/file", some.String())
	d.fail(2, "-f FILE", "content", "get", "-o", "json", some.String())
	d.fail(2, "--all", "content", "verify", "--all", some.String())
	d.fail(2, "--all", "content", "verify", "--filter", "size==1", some.String())
	d.fail(1, "filter", "content", "ls", "--filter", "digest==")
	d.fail(1, "filter", "content", "ingests", "--filter", "ref==")
	d.fail(2, "gantryctl content --help", "content", "nonsense")
	if got := d.want("content", "ls", "-q"); got != some.String()+"\n" {
		t.Errorf("mistakes left %s", got)
	}
}
