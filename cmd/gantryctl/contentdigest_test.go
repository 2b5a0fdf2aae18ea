package main

import (
	"context"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
)

func TestShortDigests(t *testing.T) {
	d := newDesk(t)
	store := twins{d.blobs()}
	for arg, want := range map[string]string{
		"aaaaaaaa":                             "ambiguous",
		"sha256:aaaaaaaa":                      "ambiguous",
		"aaaaaaaa0":                            "",
		"sha256:aaaaaaaa0":                     "",
		"sha512:aaaaaaaa0":                     "not found",
		"sha256:" + strings.Repeat("c", 64):    "", // whole: nobody is asked
		"cccccccc":                             "not found",
		"aaaaaaa":                              "at least 8",
		"demo:latest":                          "no digest",
		"":                                     "no digest",
		"sha256:":                              "no digest",
		"sha256:AAAAAAAA":                      "no digest",
		"sha256:" + strings.Repeat("a", 65):    "not found",
		`aaaaaaaa","digest~=".`:                "no digest",
		"../../etc/passwd":                     "no digest",
		"a.*:aaaaaaaa0":                        "no digest",
		"sha256:" + strings.Repeat("a", 1<<16): "not found",
	} {
		got, err := findBlob(t.Context(), store, arg)
		if want == "" && (err != nil || !strings.Contains(got.String(), strings.TrimPrefix(arg, "sha256:"))) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("findBlob(%.40q) = %s, %.200v; want %s", arg, got, err, want)
		}
	}
	if _, err := findBlob(t.Context(), store, "aaaaaaaa"); strings.Count(err.Error(), "sha256:") != candidatesMax || !strings.Contains(err.Error(), "…") {
		t.Errorf("it lists %v", err)
	}
}

// twins lists blobs whose digests begin alike.
type twins struct{ content.Blobs }

func (twins) List(_ context.Context, filters ...string) iter.Seq2[content.Info, error] {
	return func(yield func(content.Info, error) bool) {
		re := regexp.MustCompile(strings.Trim(strings.TrimPrefix(filters[0], "digest~="), `"`))
		for i := range 9 {
			d := digest.NewDigestFromEncoded(digest.SHA256, strings.Repeat("a", 8)+strings.Repeat(fmt.Sprint(i), 56))
			if re.MatchString(d.String()) && !yield(content.Info{Digest: d}, nil) {
				return
			}
		}
	}
}

func TestContentIsCompleted(t *testing.T) {
	d := newDesk(t)
	a, b := d.put("a", nil), d.put("b", nil)
	d.begin("r1", "x", 0)
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"info", ""}, []string{a.String(), b.String()}},
		{[]string{"rm", b.String(), a.Encoded()[:3]}, []string{a.Encoded()}},
		{[]string{"get", a.String()[:10]}, []string{a.String()}},
		{[]string{"get", a.String(), ""}, nil},
		{[]string{"abort", ""}, []string{"r1"}},
	} {
		out, _, code := d.ctl(append([]string{"__complete", "content"}, c.args...)...)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		got := slices.Sorted(slices.Values(lines[:len(lines)-1])) // the last is for the shell
		slices.Sort(c.want)
		if code != 0 || !slices.Equal(got, c.want) {
			t.Errorf("%q offers %q; want %q", c.args, got, c.want)
		}
	}
}
