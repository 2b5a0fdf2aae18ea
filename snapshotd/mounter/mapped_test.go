package mounter

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/mount"
)

// TestMountsWithTheIDsOfAContainer shows images and directories to a container
// with users of its own.
func TestMountsWithTheIDsOfAContainer(t *testing.T) {
	n := newNode(t)
	s := n.start(t)
	a, b := n.image("one"), n.image("one")
	active := n.place("one", true)
	tree := filepath.Join(active, "fs")
	ids := []string{"uidmap=0:3000:65536", "gidmap=0:4000:65536"}
	with := func(options ...string) []string { return append(slices.Clone(ids), options...) }

	for name, mounts := range map[string][]mount.Mount{
		"a view": {{Type: "bind", Source: filepath.Dir(a) + "/fs", Options: with("ro", "rbind")}},
		"image":  {{Type: "erofs", Source: a, Options: with("ro", "loop")}},
		"layers": {erofs(a), erofs(b), {Type: "format/overlay", Source: "overlay", Options: with("lowerdir={{ overlay 0 1 }}")}},
	} {
		i := activate(t, s, name, activation.Options{Temporary: true}, mounts...)
		var st unix.Stat_t
		if err := unix.Stat(i.System[0].Source, &st); err != nil || st.Uid != 3000 || st.Gid != 4000 {
			t.Errorf("%s: the root belongs to %d:%d, %v", name, st.Uid, st.Gid, err)
		}
		deactivate(t, s, name)
	}

	// What is above has the ids of the host, as it was made.
	if err := unix.Lchown(tree, 3000, 4000); err != nil {
		t.Fatal(err)
	}
	i := activate(t, s, "active", activation.Options{Temporary: true}, erofs(a), mount.Mount{
		Type: "format/overlay", Source: "overlay",
		Options: with("lowerdir={{ mount 0 }}", "upperdir="+tree, "workdir="+active+"/work"),
	})
	for _, path := range []string{"", "/1"} {
		var st unix.Stat_t
		if err := unix.Stat(i.System[0].Source+path, &st); err != nil || st.Uid != 3000 || st.Gid != 4000 {
			t.Errorf("%q of an active snapshot belongs to %d:%d, %v", path, st.Uid, st.Gid, err)
		}
	}
	deactivate(t, s, "active")

	for _, bad := range [][]string{{"uidmap=0:1:1"}, {"uidmap=0:0:4294967295", "gidmap=0:0:4294967295"}, {"uidmap=x", "gidmap=0:1:1"}} {
		m := mount.Mount{Type: "bind", Source: tree, Options: append(bad, "rbind")}
		if _, err := s.In(one).Activate(t.Context(), "bad", []mount.Mount{m}, activation.Options{Temporary: true}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Activate with %q: %v", bad, err)
		}
	}
	n.clean(t)
}
