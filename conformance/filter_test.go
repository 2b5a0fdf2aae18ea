package conformance

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/filters"

	"github.com/gantryd/gantry/services/filter"
)

// TestFiltersMatchAsContainerds puts random filters to both parsers. They must
// agree on what is a filter and on what it matches; only white space where
// containerd has none is forgiven.
func TestFiltersMatchAsContainerds(t *testing.T) {
	tokens := []string{
		"id", "labels", "name", ".", ".", ",", "==", "!=", "~=", "=", " ", "a", "b", `"a"`, `"x.y"`,
		"/a|b/", "|^a|", "redis:7", "docker.io/x", `"a\"b"`, "_", "9", `""`, "~", "é", "[", "x=y", `a"b`,
	}
	object := func(path []string) (string, bool) {
		if path[0] == "labels" {
			return filter.Labels(map[string]string{"a": "b", "x.y": "a", "id.a": ""}, path[1:])
		}
		v, ok := map[string]string{"id": "a", "name": "docker.io/x", "a": ""}[strings.Join(path, ".")]
		return v, ok
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		var b strings.Builder
		for range 1 + rnd.IntN(8) {
			b.WriteString(tokens[rnd.IntN(len(tokens))])
		}
		theirs, theirErr := filters.ParseAll(b.String())
		ours, ourErr := filter.Parse(b.String())
		if theirErr != nil && strings.Contains(b.String(), " ") {
			continue
		}
		if (theirErr == nil) != (ourErr == nil) {
			t.Fatalf("%q: containerd says %v, we say %v", b.String(), theirErr, ourErr)
		}
		if theirErr != nil {
			continue
		}
		if got, want := ours.Match(object), theirs.Match(filters.AdapterFunc(object)); got != want {
			t.Fatalf("%q matches %t, with containerd's %t", b.String(), got, want)
		}
	}
}
