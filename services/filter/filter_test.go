package filter

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
)

func TestMatch(t *testing.T) {
	object := func(path []string) (string, bool) {
		if path[0] == "labels" {
			return Labels(map[string]string{"io.x/y": "v", "n": ""}, path[1:])
		}
		v, ok := map[string]string{"name": "redis:7", "topic": "/tasks/exit", "id": "a"}[path[0]]
		return v, ok && len(path) == 1
	}
	for _, c := range []struct {
		filters []string
		want    bool
	}{
		{nil, true},
		{[]string{""}, true},
		{[]string{"", "id==b"}, true},
		{[]string{"id==a"}, true},
		{[]string{"id==b"}, false},
		{[]string{"id==b", "name==redis:7"}, true},
		{[]string{"id==a,name==redis:8"}, false},
		{[]string{"id==a, name==redis:7"}, true},
		{[]string{"id"}, true},
		{[]string{"nothing"}, false},
		{[]string{"nothing!=x"}, true},
		{[]string{"nothing!=\"\""}, false},
		{[]string{"nothing==\"\""}, false},
		{[]string{"nothing~=^$"}, true},
		{[]string{`labels."io.x/y"==v`}, true},
		{[]string{`labels.io."x/y"==v`}, true},
		{[]string{`labels.n`}, true},
		{[]string{"topic~=|^/tasks/|"}, true},
		{[]string{"topic~=/^.tasks./"}, true},
		{[]string{`topic~=/\/exit$/`}, true},
		{[]string{`topic~="/images/"`}, false},
		{[]string{`topic=="/tasks/exit"`}, true},
		{[]string{"topic~=[", "id==b"}, false},
	} {
		f, err := Parse(c.filters...)
		if err != nil {
			t.Errorf("Parse(%q): %v", c.filters, err)
			continue
		}
		if got := f.Match(object); got != c.want {
			t.Errorf("%q matches %t, want %t", c.filters, got, c.want)
		}
	}
}

func TestSyntaxErrorsAreInvalid(t *testing.T) {
	for _, s := range []string{"==", "id==", "id=a", "id==a,", ",", "id==a b", `"id==a`, "id.", "id~=/x", "id==\"x", "a..b", "é==1"} {
		if _, err := Parse(s); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Parse(%q) is %v, want an invalid argument", s, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"id==a", `labels."x/y"!=v,name~=/a|b/`, "topic~=|^/tasks/|", "\"\\x00\""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if x, err := Parse(s); err == nil {
			x.Match(func([]string) (string, bool) { return s, true })
		}
	})
}
