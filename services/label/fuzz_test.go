package label

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// FuzzUpdate: what is refused is an invalid argument, and what is not has no
// label that is empty or too long, is what was asked for in the fields that were
// named, and what it was in the others.
func FuzzUpdate(f *testing.F) {
	f.Add("a=1\nb.c/d=2", "a=9", "labels.a")
	f.Add("a=1", "a=", "labels")
	f.Add("", "=v", "")
	f.Add("a=1", "b=2", "labels.\nlabels.a\nsize")
	f.Add("a="+strings.Repeat("v", 4096), "b="+strings.Repeat("v", 4095), "labels.b")
	f.Fuzz(func(t *testing.T, was, given, named string) {
		old, new, fields := parse(was), parse(given), []string(nil)
		if named != "" {
			fields = strings.Split(named, "\n")
		}
		before := maps.Clone(old)
		got, err := Update(old, new, fields)
		if !maps.Equal(old, before) {
			t.Errorf("Update(%q, %q, %q) changed its argument", was, given, named)
		}
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("Update(%q, %q, %q): %v", was, given, named, err)
			}
			return
		}
		all := len(fields) == 0
		for _, field := range fields {
			all = all || field == "labels"
		}
		for k, v := range got {
			if v == "" || k == "" && v != old[k] {
				t.Errorf("Update(%q, %q, %q) has %q=%q", was, given, named, k, v)
			}
			if v != new[k] && (all || v != old[k]) {
				t.Errorf("Update(%q, %q, %q) made up %q=%q", was, given, named, k, v)
			}
		}
		again, err := Update(got, new, fields)
		if err != nil || !maps.Equal(again, got) {
			t.Errorf("Update(%q, %q, %q) and again: %v, %v", was, given, named, again, err)
		}
	})
}

func parse(text string) map[string]string {
	labels := map[string]string{}
	for line := range strings.SplitSeq(text, "\n") {
		if k, v, ok := strings.Cut(line, "="); ok {
			labels[k] = v
		}
	}
	return labels
}
