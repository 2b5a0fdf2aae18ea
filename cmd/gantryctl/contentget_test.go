package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/namespace"
)

// A rotten store has other bytes than it says, of some blobs.
type rotten struct {
	content.Stores
	of []digest.Digest
}

func (r rotten) In(scope namespace.Scope) content.Store { return rottenIn{r.Stores.In(scope), r.of} }

type rottenIn struct {
	content.Store
	of []digest.Digest
}

func (r rottenIn) Open(ctx context.Context, d digest.Digest) (content.Reader, error) {
	reader, err := r.Store.Open(ctx, d)
	if slices.Contains(r.of, d) {
		reader = rottenReader{reader}
	}
	return reader, err
}

type rottenReader struct{ content.Reader }

func (r rottenReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.Reader.ReadAt(p, off)
	copy(p[:n], "rot")
	return n, err
}

func TestContentThatIsCorrupt(t *testing.T) {
	d := newDesk(t)
	good, bad := d.put("good", nil), d.put("bad bytes", nil)
	d.client.Content = rotten{d.client.Content, []digest.Digest{bad}}
	d.fail(1, "is corrupt", "content", "get", bad.String())
	file := d.file("before")
	d.fail(1, "is corrupt", "content", "get", "-f", file, bad.String())
	if got, err := os.ReadFile(file); err != nil || string(got) != "before" {
		t.Errorf("the file has %q, %v", got, err)
	}
	if left, err := filepath.Glob(filepath.Dir(file) + "/.*"); err != nil || len(left) > 0 {
		t.Errorf("it left %v", left)
	}
	for _, args := range [][]string{{"--all"}, {good.String(), bad.String()}} {
		out, errs, code := d.ctl(append([]string{"content", "verify"}, args...)...)
		if code != 1 || !strings.HasPrefix(out, bad.String()+"  corrupt  ") || strings.Contains(out, "ok") || !strings.Contains(errs, "1 of 2") {
			t.Errorf("verify = %d, %q, %q", code, out, errs)
		}
	}
	out, errs, code := d.ctl("content", "verify", "--all", "-o", "json")
	var rows []verifyRow
	if err := json.Unmarshal([]byte(out), &rows); err != nil || code != 1 || !strings.Contains(errs, "1 of 2") {
		t.Errorf("verify = %d, %q, %q, %v", code, out, errs, err)
	}
	for i := range rows {
		rows[i].Why = ""
	}
	want := []verifyRow{{Digest: good, Size: 4, State: "ok"}, {Digest: bad, Size: 9, State: "corrupt"}}
	slices.SortFunc(want, func(a, b verifyRow) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Errorf("verify (-want +got):\n%s", diff)
	}
}

func TestOnlyTextGoesToATerminal(t *testing.T) {
	d := newDesk(t)
	for body, says := range map[string]string{
		"{\"naïve\": \"水\"}\t\r\n":   "",
		"no end of line":             "",
		"":                           "",
		"clear \x1b[2J":              "no text",
		"c1 \u009b2J":                "no text",
		"not \xff utf-8":             "no text",
		"a\x00b":                     "no text",
		"right \u202e left":          "no text",
		strings.Repeat("x", 1<<20+1): "too large",
	} {
		var out bytes.Buffer
		err := printText(t.Context(), &out, d.blobs(), d.put(body, nil))
		if says != "" {
			if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "-f FILE") || out.Len() > 0 {
				t.Errorf("%.20q: %q, %v; want %s", body, &out, err, says)
			}
			continue
		}
		if got := out.String(); err != nil || strings.TrimSuffix(got, "\n") != strings.TrimSuffix(body, "\n") {
			t.Errorf("%.20q: %q, %v", body, got, err)
		}
	}
}
