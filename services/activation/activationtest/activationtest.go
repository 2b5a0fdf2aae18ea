// Package activationtest holds the promises of [activation.Store] and a store in
// memory that keeps them.
package activationtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
)

// A Fixture is what the promises are tested on.
type Fixture struct {
	Stores activation.Stores
	Allows bool // the caller's own types and transforms reach the store

	// Image returns the path of an image of EROFS that a snapshot of the
	// namespace has beside its tree. Active and Committed return the directory
	// of such a snapshot, which has its tree at "fs", and scratch at "work" if
	// it is active.
	Image             func(t *testing.T, ns string) string
	Active, Committed func(t *testing.T, ns string) string
}

// Run tests the fixtures that open returns. It calls open once per promise and
// expects an empty store each time, which asks leases what exists.
func Run(t *testing.T, open func(t *testing.T, leases lease.Registry) Fixture) {
	for _, p := range promises {
		t.Run(p.name, func(t *testing.T) { p.check(t, open(t, registry{})) })
	}
}

var promises = []struct {
	name  string
	check func(*testing.T, Fixture)
}{
	{"mounts that need nothing are not implemented, and leave nothing", nothing},
	{"an image is mounted, and what joins it is filled in", joined},
	{"images under an overlay are in the order that was asked for", stacked},
	{"an image alone is mounted, and nothing is left", alone},
	{"a loop device is a mount point that others can name", loop},
	{"temporary leaves one bind mount of the last", temporary},
	{"temporary with a transform on the last mount is as any other", temporaryTransform},
	{"the first mount of the caller is transformed, those behind it are not", firstOnly},
	{"types and transforms of the caller's own are left to it", allowed},
	{"a name that exists already exists and is unchanged", taken},
	{"deactivate, then info is not found, and the name is free", deactivate},
	{"a missing activation is not found by every method", missing},
	{"a bad name, too many mounts, too much text or a bad label is refused", bad},
	{"labels come back, without those that are empty", labels},
	{"a template that cannot be filled in is refused and leaves nothing", templates},
	{"a text does not grow without end", growth},
	{"directories are made in an active snapshot and nowhere else", mkdir},
	{"another namespace's snapshot is refused", foreign},
	{"a committed snapshot is not written to", committed},
	{"a place or a type that is not known is not implemented", unknown},
	{"list is in order of the names and of one namespace", list},
	{"a lease that does not exist is not found and nothing is made", noLease},
	{"one of many who activate a name wins", race},
}

var (
	one = namespace.Scope{Name: "one"}
	two = namespace.Scope{Name: "two"}
)

// registry knows the lease "held" of every namespace.
type registry struct{}

func (registry) Lookup(_ context.Context, scope namespace.Scope) (lease.Ref, error) {
	if scope.Lease != "held" {
		return lease.Ref{}, fmt.Errorf("lease does not exist: %w", errdefs.ErrNotFound)
	}
	return lease.Ref{ID: "held", Generation: 7}, nil
}

func erofs(path string) mount.Mount {
	return mount.Mount{Type: "erofs", Source: path, Options: []string{"ro", "loop"}}
}

// image is mounts that leave one bind mount to the caller.
func (f Fixture) image(t *testing.T, ns string) []mount.Mount {
	return []mount.Mount{
		erofs(f.Image(t, ns)),
		{Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"ro", "rbind"}},
	}
}

// activate is undone with the test.
func activate(t *testing.T, s activation.Store, name string, mounts []mount.Mount, o activation.Options) activation.Info {
	t.Helper()
	i, err := s.Activate(t.Context(), name, mounts, o)
	if err != nil {
		t.Fatalf("Activate(%q): %v", name, err)
	}
	t.Cleanup(func() {
		if err := s.Deactivate(context.Background(), name); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("Deactivate(%q): %v", name, err)
		}
	})
	got, err := s.Info(t.Context(), name)
	if err != nil {
		t.Fatalf("Info(%q): %v", name, err)
	}
	if diff := cmp.Diff(i, got); diff != "" {
		t.Errorf("Info(%q) is not what Activate returned:\n%s", name, diff)
	}
	return i
}

// refuse expects an error of a kind, and nothing made.
func refuse(t *testing.T, s activation.Store, name string, mounts []mount.Mount, o activation.Options, want error) {
	t.Helper()
	if _, err := s.Activate(t.Context(), name, mounts, o); !errors.Is(err, want) {
		t.Errorf("Activate(%.100q, %.300q) = %v, want %v", name, fmt.Sprint(mounts), err, want)
	}
	for i, err := range s.List(t.Context()) {
		t.Errorf("List has %q, %v, after an activation that was refused", i.Name, err)
	}
}

// points checks that there are n active mounts, and returns where they are.
func points(t *testing.T, i activation.Info, n int) []string {
	t.Helper()
	var all []string
	seen := map[string]bool{}
	for _, a := range i.Active {
		if a.MountPoint == "" || seen[a.MountPoint] || a.MountedAt.IsZero() || a.MountedAt.After(time.Now().Add(time.Hour)) {
			t.Errorf("active mount %+v", a)
		}
		seen[a.MountPoint] = true
		all = append(all, a.MountPoint)
	}
	if len(all) != n {
		t.Fatalf("%d active mounts, want %d: %+v", len(all), n, i.Active)
	}
	return all
}

func system(t *testing.T, i activation.Info, want ...mount.Mount) {
	t.Helper()
	if diff := cmp.Diff(want, append([]mount.Mount(nil), i.System...)); diff != "" {
		t.Errorf("system mounts (-want +got):\n%s", diff)
	}
}

func nothing(t *testing.T, f Fixture) {
	s := f.Stores.In(one)
	fs := f.Active(t, "one") + "/fs"
	refuse(t, s, "n", []mount.Mount{{Type: "bind", Source: fs, Options: []string{"rw", "rbind"}}}, activation.Options{}, errdefs.ErrNotImplemented)
	refuse(t, s, "n", []mount.Mount{{Type: "unheard/of", Source: fs}}, activation.Options{}, errdefs.ErrNotImplemented)
	refuse(t, s, "n", nil, activation.Options{}, errdefs.ErrNotImplemented)
	refuse(t, s, "n", nil, activation.Options{Temporary: true}, errdefs.ErrNotImplemented)
}

func joined(t *testing.T, f Fixture) {
	mounts := f.image(t, "one")
	i := activate(t, f.Stores.In(one), "n", mounts, activation.Options{})
	p := points(t, i, 1)
	if want := (mount.Mount{Type: "erofs", Source: mounts[0].Source, Options: []string{"ro"}}); cmp.Diff(want, i.Active[0].Mount) != "" {
		t.Errorf("active %+v, want %+v", i.Active[0].Mount, want)
	}
	system(t, i, mount.Mount{Type: "bind", Source: p[0], Options: []string{"ro", "rbind"}})
}

func stacked(t *testing.T, f Fixture) {
	dir := f.Active(t, "one")
	mounts := []mount.Mount{erofs(f.Image(t, "one")), erofs(f.Image(t, "one")), erofs(f.Image(t, "one"))}
	for name, order := range map[string][]int{"{{ overlay 0 2 }}": {0, 1, 2}, "{{overlay 2 1}}": {2, 1}, "{{ mount 1 }}:{{ mount 2 }}": {1, 2}} {
		top := mount.Mount{Type: "format/mkdir/overlay", Source: "overlay", Options: []string{
			"workdir=" + dir + "/work", "upperdir=" + dir + "/fs", "lowerdir=" + name,
		}}
		i := activate(t, f.Stores.In(one), name, append(mounts[:3:3], top), activation.Options{})
		p := points(t, i, 3)
		var lower []string
		for _, n := range order {
			lower = append(lower, p[n])
		}
		system(t, i, mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
			"workdir=" + dir + "/work", "upperdir=" + dir + "/fs", "lowerdir=" + strings.Join(lower, ":"),
		}})
	}
}

func alone(t *testing.T, f Fixture) {
	i := activate(t, f.Stores.In(one), "n", []mount.Mount{erofs(f.Image(t, "one"))}, activation.Options{})
	points(t, i, 1)
	system(t, i)
}

func loop(t *testing.T, f Fixture) {
	image := f.Image(t, "one")
	i := activate(t, f.Stores.In(one), "n", []mount.Mount{
		{Type: "loop", Source: image, Options: []string{"ro"}},
		{Type: "format/squashfs", Source: "{{ mount 0 }}", Target: "{{ source 0 }}", Options: []string{"x={{ target 0 }}"}},
	}, activation.Options{})
	p := points(t, i, 1)
	system(t, i, mount.Mount{Type: "squashfs", Source: p[0], Target: image, Options: []string{"x="}})
}

func temporary(t *testing.T, f Fixture) {
	for name, mounts := range map[string][]mount.Mount{
		"bind":  {{Type: "bind", Source: f.Active(t, "one") + "/fs", Options: []string{"rw", "rbind"}}},
		"view":  {{Type: "bind", Source: f.Committed(t, "one") + "/fs", Options: []string{"ro", "rbind"}}},
		"image": {erofs(f.Image(t, "one"))},
	} {
		i := activate(t, f.Stores.In(one), name, mounts, activation.Options{Temporary: true})
		p := points(t, i, 1)
		system(t, i, mount.Mount{Type: "bind", Source: p[0], Options: []string{"rbind"}})
	}
	dir := f.Active(t, "one")
	i := activate(t, f.Stores.In(one), "overlay", []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + f.Committed(t, "one") + "/fs:" + f.Committed(t, "one") + "/fs", "upperdir=" + dir + "/fs", "workdir=" + dir + "/work",
	}}}, activation.Options{Temporary: true})
	system(t, i, mount.Mount{Type: "bind", Source: points(t, i, 1)[0], Options: []string{"rbind"}})
}

// containerd before 2.4.2 ends here: it looked for a mount behind the last.
func temporaryTransform(t *testing.T, f Fixture) {
	i := activate(t, f.Stores.In(one), "n", f.image(t, "one"), activation.Options{Temporary: true})
	p := points(t, i, 2)
	if got := i.Active[1].Source; got != p[0] {
		t.Errorf("the second mount is of %q, want %q", got, p[0])
	}
	system(t, i, mount.Mount{Type: "bind", Source: p[1], Options: []string{"rbind"}})
}

func firstOnly(t *testing.T, f Fixture) {
	mounts := append(f.image(t, "one"), mount.Mount{Type: "bind", Source: "{{ mount 0 }}"})
	i := activate(t, f.Stores.In(one), "n", mounts, activation.Options{})
	system(t, i, mount.Mount{Type: "bind", Source: points(t, i, 1)[0], Options: []string{"ro", "rbind"}}, mounts[2])
}

func allowed(t *testing.T, f Fixture) {
	s := f.Stores.In(one)
	if !f.Allows {
		refuse(t, s, "n", f.image(t, "one"), activation.Options{AllowTypes: []string{"erofs"}}, errdefs.ErrNotImplemented)
		return
	}
	own := activation.Options{AllowTypes: []string{"erofs"}}
	refuse(t, s, "n", []mount.Mount{erofs(f.Image(t, "one"))}, own, errdefs.ErrNotImplemented)
	refuse(t, s, "n", f.image(t, "one"), activation.Options{AllowTypes: []string{"erofs"}, AllowTransforms: []string{"format"}}, errdefs.ErrNotImplemented)
	// What something behind it needs is made all the same.
	i := activate(t, s, "needed", f.image(t, "one"), own)
	points(t, i, 1)
	// A transform of the caller's own is left to it at the end, and not before.
	mounts := f.image(t, "one")
	mounts[1].Type = "format/mkdir/bind"
	i = activate(t, s, "end", mounts, activation.Options{AllowTransforms: []string{"mkdir"}})
	system(t, i, mount.Mount{Type: "mkdir/bind", Source: points(t, i, 1)[0], Options: []string{"ro", "rbind"}})
	i = activate(t, s, "before", mounts, activation.Options{AllowTransforms: []string{"format"}})
	system(t, i, mount.Mount{Type: "bind", Source: points(t, i, 1)[0], Options: []string{"ro", "rbind"}})
}

func taken(t *testing.T, f Fixture) {
	s := f.Stores.In(one)
	before := activate(t, s, "n", f.image(t, "one"), activation.Options{Labels: map[string]string{"a": "1"}})
	if _, err := s.Activate(t.Context(), "n", f.image(t, "one"), activation.Options{Labels: map[string]string{"a": "2"}}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("Activate of a name that exists = %v, want already exists", err)
	}
	if after, err := s.Info(t.Context(), "n"); err != nil || cmp.Diff(before, after) != "" {
		t.Errorf("Info = %+v, %v, want %+v", after, err, before)
	}
}

func deactivate(t *testing.T, f Fixture) {
	s := f.Stores.In(one)
	for range 2 {
		activate(t, s, "n", f.image(t, "one"), activation.Options{})
		if err := s.Deactivate(t.Context(), "n"); err != nil {
			t.Fatalf("Deactivate: %v", err)
		}
		if _, err := s.Info(t.Context(), "n"); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("Info after Deactivate = %v, want not found", err)
		}
	}
}

func missing(t *testing.T, f Fixture) {
	s := f.Stores.In(one)
	activate(t, f.Stores.In(two), "n", f.image(t, "two"), activation.Options{})
	if err := s.Deactivate(t.Context(), "n"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Deactivate = %v, want not found", err)
	}
	if _, err := s.Info(t.Context(), "n"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Info = %v, want not found", err)
	}
}

func bad(t *testing.T, f Fixture) {
	s := f.Stores.In(one)
	mounts := f.image(t, "one")
	refuse(t, s, "", mounts, activation.Options{}, errdefs.ErrInvalidArgument)
	refuse(t, s, strings.Repeat("n", 4097), mounts, activation.Options{}, errdefs.ErrInvalidArgument)
	refuse(t, s, "n", mounts, activation.Options{Labels: map[string]string{"k": strings.Repeat("v", 4096)}}, errdefs.ErrInvalidArgument)
	refuse(t, s, "n", make([]mount.Mount, 256), activation.Options{}, errdefs.ErrInvalidArgument)
	mounts[1].Options = []string{strings.Repeat("o", 1<<20)}
	refuse(t, s, "n", mounts, activation.Options{}, errdefs.ErrInvalidArgument)
}

func labels(t *testing.T, f Fixture) {
	i := activate(t, f.Stores.In(one), "n", f.image(t, "one"), activation.Options{
		Labels: map[string]string{"containerd.io/gc.bref.container": "c", "empty": ""},
	})
	if diff := cmp.Diff(map[string]string{"containerd.io/gc.bref.container": "c"}, i.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
}

func templates(t *testing.T, f Fixture) {
	s := f.Stores.In(one)
	for _, text := range []string{
		"{{", "{{ mount 0", "{{}}", "{{ mount }}", "{{ mount 1 }}", "{{ mount -1 }}", "{{ mount 0x0 }}", "{{ mount 0 0 }}",
		"{{ overlay 0 }}", "{{ overlay 0 1 }}", "{{ overlay 1 0 }}", "{{ . }}", `{{ printf "%1000000d" 1 }}`, "{{ mount 0 | len }}",
		"{{ range 1000000000 }}x{{ end }}", "{{ define \"x\" }}{{ template \"x\" }}{{ end }}", "{{ call mount 0 }}", "{{ MOUNT 0 }}",
		"{{ mount 99999999999999999999 }}", "}} {{ mount 0 }} {{ nothing }}", "{{ source 0 }}{{ target 1 }}",
	} {
		mounts := f.image(t, "one")
		mounts[1].Options = append(mounts[1].Options, text)
		refuse(t, s, "n", mounts, activation.Options{}, errdefs.ErrInvalidArgument)
	}
}

func growth(t *testing.T, f Fixture) {
	mounts := f.image(t, "one")
	mounts[1].Options = []string{strings.Repeat("{{ mount 0 }}", 40_000)}
	refuse(t, f.Stores.In(one), "n", mounts, activation.Options{}, errdefs.ErrInvalidArgument)
}

func mkdir(t *testing.T, f Fixture) {
	s := f.Stores.In(one)
	dir := f.Active(t, "one")
	with := func(options ...string) []mount.Mount {
		return append(f.image(t, "one")[:1], mount.Mount{Type: "format/mkdir/bind", Source: dir + "/fs/made", Options: append(options, "rw", "rbind")})
	}
	path := "X-containerd.mkdir.path="
	for _, o := range []string{
		"X-containerd.mkdir.mode=0755", path, path + dir + "/x:9", path + dir + "/x:01777", path + dir + "/x:0755:0", path + dir + "/x:0755:a:0",
		path + dir + "/x:0755:0:0:0", path + f.Committed(t, "one") + "/x", path + f.Active(t, "two") + "/x", path + dir + "/../x", path + dir + "x",
	} {
		refuse(t, s, "n", with(o), activation.Options{}, errdefs.ErrInvalidArgument)
	}
	refuse(t, s, "n", with(path+"/elsewhere/x"), activation.Options{}, errdefs.ErrNotImplemented)
	i := activate(t, s, "n", with(path+dir+"/fs/made:0750:1:2", path+dir+"/fs/made/below"), activation.Options{})
	points(t, i, 1)
	system(t, i, mount.Mount{Type: "bind", Source: dir + "/fs/made", Options: []string{"rw", "rbind"}})
}

func foreign(t *testing.T, f Fixture) {
	s := f.Stores.In(one)
	active := f.Active(t, "two")
	temporary := activation.Options{Temporary: true}
	refuse(t, s, "n", f.image(t, "two"), activation.Options{}, errdefs.ErrInvalidArgument)
	refuse(t, s, "n", []mount.Mount{{Type: "loop", Source: f.Image(t, "two"), Options: []string{"ro"}}}, activation.Options{}, errdefs.ErrInvalidArgument)
	refuse(t, s, "n", []mount.Mount{{Type: "bind", Source: active + "/fs", Options: []string{"ro"}}}, temporary, errdefs.ErrInvalidArgument)
	refuse(t, s, "n", []mount.Mount{{Type: "overlay", Options: []string{"lowerdir=" + f.Active(t, "one") + "/fs:" + active + "/fs"}}}, temporary, errdefs.ErrInvalidArgument)
	own := f.Active(t, "one")
	for _, p := range []string{own + "/../" + active[strings.LastIndex(active, "/")+1:] + "/fs", own + "/fs/../../x", own + "//fs", own + "/./fs"} {
		refuse(t, s, "n", []mount.Mount{{Type: "bind", Source: p, Options: []string{"ro"}}}, temporary, errdefs.ErrInvalidArgument)
	}
}

func committed(t *testing.T, f Fixture) {
	s := f.Stores.In(one)
	dir, own := f.Committed(t, "one"), f.Active(t, "one")
	temporary := activation.Options{Temporary: true}
	refuse(t, s, "n", []mount.Mount{{Type: "bind", Source: dir + "/fs", Options: []string{"rw", "rbind"}}}, temporary, errdefs.ErrInvalidArgument)
	refuse(t, s, "n", []mount.Mount{{Type: "bind", Source: dir + "/fs", Options: []string{"rbind"}}}, temporary, errdefs.ErrInvalidArgument)
	refuse(t, s, "n", []mount.Mount{{Type: "overlay", Options: []string{
		"lowerdir=" + own + "/fs", "upperdir=" + dir + "/fs", "workdir=" + dir + "/work",
	}}}, temporary, errdefs.ErrInvalidArgument)
}

func unknown(t *testing.T, f Fixture) {
	s := f.Stores.In(one)
	temporary := activation.Options{Temporary: true}
	refuse(t, s, "n", []mount.Mount{{Type: "tmpfs", Source: "tmpfs"}}, temporary, errdefs.ErrNotImplemented)
	refuse(t, s, "n", []mount.Mount{{Type: "proc", Source: "proc"}}, temporary, errdefs.ErrNotImplemented)
	refuse(t, s, "n", []mount.Mount{erofs("/elsewhere/layer.erofs")}, activation.Options{}, errdefs.ErrNotImplemented)
	refuse(t, s, "n", []mount.Mount{{Type: "bind", Source: "/etc", Options: []string{"ro"}}}, temporary, errdefs.ErrNotImplemented)
}

func list(t *testing.T, f Fixture) {
	s := f.Stores.In(one)
	activate(t, f.Stores.In(two), "0", f.image(t, "two"), activation.Options{})
	want := []string{"a", "a/b", "b\x00", "ü"}
	for _, n := range []int{2, 0, 3, 1} {
		activate(t, s, want[n], f.image(t, "one"), activation.Options{})
	}
	var got []string
	for i, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		if len(i.Active) != 1 || len(i.System) != 1 {
			t.Errorf("List has %+v", i)
		}
		got = append(got, i.Name)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
}

func noLease(t *testing.T, f Fixture) {
	refuse(t, f.Stores.In(namespace.Scope{Name: "one", Lease: "gone"}), "n", f.image(t, "one"), activation.Options{}, errdefs.ErrNotFound)
	activate(t, f.Stores.In(namespace.Scope{Name: "one", Lease: "held"}), "n", f.image(t, "one"), activation.Options{})
}

func race(t *testing.T, f Fixture) {
	s := f.Stores.In(one)
	mounts := f.image(t, "one")
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = s.Activate(t.Context(), "n", mounts, activation.Options{}) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, errdefs.ErrAlreadyExists) {
			t.Errorf("Activate = %v, want already exists", err)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d activations of one name succeeded", won, len(errs))
	}
	if err := s.Deactivate(t.Context(), "n"); err != nil {
		t.Errorf("Deactivate: %v", err)
	}
}
