package snapshottest

import (
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
)

// mapping is labels that say these ids.
func mapping(uids, gids string) map[string]string {
	return map[string]string{snapshot.LabelUIDMapping: uids, snapshot.LabelGIDMapping: gids}
}

func remap(t *testing.T, f Fixture) {
	s := in(t, f, one)
	committed(t, s, "base", "")
	committed(t, s, "second", "base")
	o := snapshot.Options{Labels: mapping("0:1000:10,10:5000:1", "0:2000:65536")}
	check := func(what string, got []mount.Mount, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		options := got[len(got)-1].Options
		for _, want := range []string{"uidmap=0:1000:10,10:5000:1", "gidmap=0:2000:65536"} {
			if slices.Contains(options, want) != f.Traits.RemapIDs {
				t.Errorf("%s: options %q with the trait %t, about %s", what, options, f.Traits.RemapIDs, want)
			}
		}
	}
	for _, parent := range []string{"", "base", "second"} {
		m, err := s.Prepare(t.Context(), "active on "+parent, parent, o)
		check("Prepare on "+parent, m, err)
		m, err = s.Mounts(t.Context(), "active on "+parent)
		check("Mounts of active on "+parent, m, err)
		m, err = s.View(t.Context(), "view of "+parent, parent, o)
		check("View of "+parent, m, err)
		m, err = s.Mounts(t.Context(), "view of "+parent)
		check("Mounts of view of "+parent, m, err)
	}
	if err := s.Commit(t.Context(), "mapped", "active on base", o); err != nil {
		t.Errorf("Commit with a mapping: %v", err)
	}
	if got := statOf(t, s, "mapped").Labels[snapshot.LabelUIDMapping]; got != "0:1000:10,10:5000:1" {
		t.Errorf("the label of the committed snapshot: %q", got)
	}
}

func badMapping(t *testing.T, f Fixture) {
	s := in(t, f, one)
	prepare(t, s, "key", "")
	before := names(t, s)
	for _, bad := range []map[string]string{
		{snapshot.LabelUIDMapping: "0:1000:1"},
		{snapshot.LabelGIDMapping: "0:1000:1"},
		mapping("0:1000:1", ""),
		mapping("junk", "0:1000:1"),
		mapping("0:1000:1", "0:1000:0"),
		mapping("0:1000:10,5:9000:1", "0:1000:1"),
		mapping("0:1000:4294967295", "0:1000:1"),
		mapping("0:0:4294967295", "0:0:4294967295"),
		mapping("-1:-1:-2", "0:1000:1"),
		mapping("1:1000:1", "1:1000:1"),
		mapping("0:1000:1,uidmap=0:0:1", "0:1000:1"),
	} {
		o := snapshot.Options{Labels: bad}
		_, err := s.Prepare(t.Context(), "new", "", o)
		wantKind(t, "Prepare", err, errdefs.ErrInvalidArgument)
		_, err = s.View(t.Context(), "new", "", o)
		wantKind(t, "View", err, errdefs.ErrInvalidArgument)
		wantKind(t, "Commit", s.Commit(t.Context(), "new", "key", o), errdefs.ErrInvalidArgument)
		_, err = s.Update(t.Context(), snapshot.Info{Name: "key", Labels: bad})
		wantKind(t, "Update", err, errdefs.ErrInvalidArgument)
	}
	if got := names(t, s); !slices.Equal(got, before) {
		t.Errorf("List: %q, want %q", got, before)
	}
	if got := statOf(t, s, "key").Labels; len(got) > 0 {
		t.Errorf("labels after updates that were refused: %q", got)
	}
}
