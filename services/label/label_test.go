package label

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestUpdate(t *testing.T) {
	old := map[string]string{"a": "1", "b.c/d": "2"}
	for _, c := range []struct {
		name   string
		new    map[string]string
		fields []string
		want   map[string]string
		kind   error
	}{
		{name: "no field replaces all", new: map[string]string{"x": "9"}, want: map[string]string{"x": "9"}},
		{name: "labels replaces all", new: map[string]string{"x": "9"}, fields: []string{"labels"}, want: map[string]string{"x": "9"}},
		{name: "a key with dots and slashes is one key", new: map[string]string{"b.c/d": "3"}, fields: []string{"labels.b.c/d"}, want: map[string]string{"a": "1", "b.c/d": "3"}},
		{name: "an empty value deletes", new: map[string]string{"a": ""}, fields: []string{"labels.a"}, want: map[string]string{"b.c/d": "2"}},
		{name: "a missing value deletes", fields: []string{"labels.a"}, want: map[string]string{"b.c/d": "2"}},
		{name: "nothing replaces all", want: nil},
		{name: "another field is refused", fields: []string{"size"}, kind: errdefs.ErrInvalidArgument},
		{name: "a field without key is refused", fields: []string{"labels."}, kind: errdefs.ErrInvalidArgument},
		{name: "a huge label is refused", new: map[string]string{"k": strings.Repeat("v", sizeMax)}, kind: errdefs.ErrInvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Update(old, c.new, c.fields)
			if !errors.Is(err, c.kind) {
				t.Fatalf("Update(%v, %v) is %v, want %v", c.new, c.fields, err, c.kind)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("Update(%v, %v): %s", c.new, c.fields, d)
			}
			if len(old) != 2 || old["a"] != "1" {
				t.Errorf("Update changed its argument to %v", old)
			}
		})
	}
}
