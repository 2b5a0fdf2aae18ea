package eventnats

import "testing"

func TestASubjectIsCoveredByWhatHasAllOfIt(t *testing.T) {
	for _, c := range []struct {
		pattern, subject string
		want             bool
	}{
		{"gantry.v1.one.tasks.exit", "gantry.v1.one.tasks.exit", true},
		{"gantry.v1.*.tasks.exit", "gantry.v1.one.tasks.exit", true},
		{"gantry.v1.*.tasks.exit", "gantry.v1.*.tasks.exit", true},
		{"gantry.v1.>", "gantry.v1.one.tasks.exit", true},
		{"gantry.v1.>", "gantry.v1.one.>", true},
		{"gantry.v1.>", "gantry.v1.>", true},
		{"gantry.v1.*.>", "gantry.v1.*.*", true},
		{"gantry.v1.one.tasks.exit", "gantry.v1.*.tasks.exit", false},
		{"gantry.v1.one.tasks.exit", "gantry.v1.one.tasks.>", false},
		{"gantry.v1.*.tasks.*", "gantry.v1.*.tasks.>", false},
		{"gantry.v1.*.tasks.>", "gantry.v1.>", false},
		{"gantry.v1.*.tasks.>", ">", false},
		{"gantry.v1.*.tasks.>", "gantry.v1.one.tasks", false},
		{"gantry.v1.*.tasks.exit", "gantry.v1.one.tasks.exit.more", false},
		{"gantry.v1.*.tasks.exit", "gantry.v1.one.tasks", false},
		{"gantry.v1.>", "", false},
		{"gantry.v1.>", "gantry.v1.", false},
		{"gantry.v1.>", "gantry.v1..", false},
		{"gantry.v1.>", "gantry.v1.a..b", false},
		{"gantry.v1.>", "gantry.v1.>.a", false},
		{"gantry.v1.>", "gantry.v1.a.>.b", false},
		{"gantry.v1.*.a", "gantry.v1.>.a", false},
		{"gantry.v1.*.a", "gantry.v1.*a.a", true}, // a token like any other
		{"gantry.v1.*.a", "gantry.v1.o*.b", false},
	} {
		if got := covers(c.pattern, c.subject); got != c.want {
			t.Errorf("covers(%q, %q) is %t", c.pattern, c.subject, got)
		}
	}
}
