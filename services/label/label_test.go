package label

import (
	"errors"
	"fmt"
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

func TestLabelsTogetherHaveALimit(t *testing.T) {
	labels := map[string]string{}
	add := func() error {
		k := fmt.Sprintf("%04d", len(labels))
		got, err := Update(labels, map[string]string{k: strings.Repeat("v", sizeMax-4)}, []string{"labels." + k})
		if err == nil {
			labels = got
		}
		return err
	}
	for range allMax / sizeMax {
		if err := add(); err != nil {
			t.Fatalf("label %d: %v", len(labels), err)
		}
	}
	if err := Check(labels); err != nil {
		t.Errorf("Check of the most: %v", err)
	}
	if err := add(); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("one more: %v", err)
	}
	// What is more all the same can become less.
	labels["x"], labels["y"] = strings.Repeat("v", 9), "v"
	if err := Check(labels); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Check of more: %v", err)
	}
	if _, err := Update(labels, nil, []string{"labels.y"}); err != nil {
		t.Errorf("one less: %v", err)
	}
}
