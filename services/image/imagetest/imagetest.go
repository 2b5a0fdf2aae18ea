// Package imagetest has the promises of package image as tests, and images in
// memory that keep them.
package imagetest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/image"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

// A Subject is what is tested: images, and the leases that they may belong to.
type Subject struct {
	Images image.Stores
	Leases lease.Stores
}

// Run tests what open returns. It calls open once per promise and expects no
// image and no lease each time.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	for _, p := range promises {
		t.Run(p.name, func(t *testing.T) { p.check(t, open(t)) })
	}
}

var promises = []struct {
	name  string
	check func(*testing.T, Subject)
}{
	{"create then get returns the same image", createThenGet},
	{"a name that exists is taken", nameTaken},
	{"a name is any text", nameIsText},
	{"an image that is not whole is refused", createRefused},
	{"what is set to nothing is left out", emptyValues},
	{"of a target only what crosses the wire is kept", targetKept},
	{"a missing image is not found", missing},
	{"list is in order of names and takes filters", list},
	{"namespaces do not see each other's images", namespaces},
	{"update without fields replaces all but the time of creation", updateAll},
	{"update with fields touches those only", updateFields},
	{"update that is refused changes nothing", updateRefused},
	{"the caller's date is used in place of the clock", epoch},
	{"delete removes an image, and only the one that is meant", deleteTarget},
	{"an image that expires belongs to the lease of its scope", leased},
	{"an image that does not expire asks for no lease", notLeased},
	{"many callers at once get what they made", concurrent},
}

var (
	scope   = namespace.Scope{Name: "ns"}
	expires = map[string]string{lease.LabelExpire: "2999-01-01T00:00:00Z"}
)

func img(name string) image.Image {
	return image.Image{
		Name: name,
		Target: ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageManifest,
			Digest:    digest.FromString(name),
			Size:      1,
		},
	}
}

func createThenGet(t *testing.T, s Subject) {
	want := img("docker.io/library/debian:12")
	want.Labels = map[string]string{"a": "1", "b/c.d": "2", "n\x00l": "\x00"}
	want.Target.Annotations = map[string]string{"x": "y", "n\x00l": "\x00"}
	before := time.Now()
	given := want
	given.CreatedAt, given.UpdatedAt = time.Unix(7, 0), time.Unix(8, 0)
	got, err := s.Images.In(scope).Create(t.Context(), given, image.Options{})
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	wantSame(t, got, want)
	if d := got.CreatedAt.Sub(before); d < -time.Second || d > time.Minute || !got.UpdatedAt.Equal(got.CreatedAt) {
		t.Errorf("Create: created %v, updated %v, now is %v", got.CreatedAt, got.UpdatedAt, before)
	}
	again, err := s.Images.In(scope).Get(t.Context(), want.Name)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	if d := cmp.Diff(got, again, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("Get differs from Create (-create +get):\n%s", d)
	}
}

func nameTaken(t *testing.T, s Subject) {
	create(t, s, img("i"))
	other := img("i")
	other.Labels = map[string]string{"a": "1"}
	_, err := s.Images.In(scope).Create(t.Context(), other, image.Options{})
	wantKind(t, "Create", err, errdefs.ErrAlreadyExists)
	wantGet(t, s, img("i"))
}

func nameIsText(t *testing.T, s Subject) {
	names := []string{
		"a/b", "../..", ".", "a\x00b", "\x00", "\x01", "a\x01\x01b", "ß水", "a b", "a,b==\"c\"", "-", "a\nb", "%s%n",
		strings.Repeat("x", 4096),
	}
	for _, n := range names {
		create(t, s, img(n))
	}
	for _, n := range names {
		wantGet(t, s, img(n))
	}
	slices.Sort(names)
	wantNames(t, s.Images.In(scope), names...)
	for _, n := range names {
		if err := s.Images.In(scope).Delete(t.Context(), n, image.DeleteOptions{}); err != nil {
			t.Errorf("Delete(%q): %v", n, err)
		}
	}
	wantNames(t, s.Images.In(scope))
}

// broken are images that are not whole.
var broken = map[string]func(*image.Image){
	"no name":            func(i *image.Image) { i.Name = "" },
	"a long name":        func(i *image.Image) { i.Name = strings.Repeat("x", 4097) },
	"no target":          func(i *image.Image) { i.Target = ocispec.Descriptor{} },
	"no media type":      func(i *image.Image) { i.Target.MediaType = "" },
	"no size":            func(i *image.Image) { i.Target.Size = 0 },
	"a negative size":    func(i *image.Image) { i.Target.Size = -1 },
	"no digest":          func(i *image.Image) { i.Target.Digest = "" },
	"a malformed digest": func(i *image.Image) { i.Target.Digest = "sha256:../../x" },
	"an empty key":       func(i *image.Image) { i.Labels = map[string]string{"": "v"} },
	"a long label":       func(i *image.Image) { i.Labels = map[string]string{"k": strings.Repeat("v", 4096)} },
}

func createRefused(t *testing.T, s Subject) {
	for what, breakIt := range broken {
		i := img("i")
		breakIt(&i)
		_, err := s.Images.In(scope).Create(t.Context(), i, image.Options{})
		wantKind(t, "Create with "+what, err, errdefs.ErrInvalidArgument)
	}
	wantNames(t, s.Images.In(scope))
}

func emptyValues(t *testing.T, s Subject) {
	i := img("i")
	i.Labels = map[string]string{"a": "", "b": "1"}
	i.Target.Annotations = map[string]string{"c": "", "d": "1"}
	create(t, s, i)
	i.Labels, i.Target.Annotations = map[string]string{"b": "1"}, map[string]string{"d": "1"}
	wantGet(t, s, i)
}

func targetKept(t *testing.T, s Subject) {
	i := img("i")
	i.Target.URLs, i.Target.Data, i.Target.ArtifactType = []string{"http://x"}, []byte("x"), "a"
	i.Target.Platform = &ocispec.Platform{OS: "linux"}
	got, err := s.Images.In(scope).Create(t.Context(), i, image.Options{})
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	wantSame(t, got, img("i"))
	wantGet(t, s, img("i"))
}

func missing(t *testing.T, s Subject) {
	in := s.Images.In(scope)
	for _, name := range []string{"i", ""} {
		_, err := in.Get(t.Context(), name)
		wantKind(t, "Get", err, errdefs.ErrNotFound)
		wantKind(t, "Delete", in.Delete(t.Context(), name, image.DeleteOptions{Sync: true}), errdefs.ErrNotFound)
	}
	_, err := in.Update(t.Context(), img("i"), image.Options{})
	wantKind(t, "Update", err, errdefs.ErrNotFound)
	_, err = in.Update(t.Context(), image.Image{Name: "i"}, image.Options{}, "labels.x")
	wantKind(t, "Update of a label", err, errdefs.ErrNotFound)
	wantNames(t, in)
}

func list(t *testing.T, s Subject) {
	in := s.Images.In(scope)
	wantNames(t, in)
	for name, labels := range map[string]map[string]string{
		"b": {"color": "red", "containerd.io/x.y": "1"}, "a": {"color": "blue"}, "B": nil, "a/": {"color": "red"},
	} {
		i := img(name)
		i.Labels = labels
		if name == "B" {
			i.Target.MediaType = ocispec.MediaTypeImageIndex
			i.Target.Annotations = map[string]string{"org.x": "1"}
		}
		create(t, s, i)
	}
	for _, c := range []struct{ filters, want []string }{
		{nil, []string{"B", "a", "a/", "b"}},
		{[]string{""}, []string{"B", "a", "a/", "b"}},
		{[]string{"name==a"}, []string{"a"}},
		{[]string{"name~=/^a/"}, []string{"a", "a/"}},
		{[]string{"labels.color==red"}, []string{"a/", "b"}},
		{[]string{"labels.color==red, name==b"}, []string{"b"}},
		{[]string{"labels.color==blue", "name==B"}, []string{"B", "a"}},
		{[]string{`labels."containerd.io/x.y"==1`}, []string{"b"}},
		{[]string{"target.digest==" + digest.FromString("a").String()}, []string{"a"}},
		{[]string{"target.mediatype==" + ocispec.MediaTypeImageIndex}, []string{"B"}},
		{[]string{"annotations.org.x"}, []string{"B"}},
		{[]string{"target.size"}, nil},
		{[]string{"labels"}, nil},
	} {
		got, err := in.List(t.Context(), c.filters...)
		if err != nil {
			t.Errorf("List(%q): %v", c.filters, err)
		}
		if !slices.Equal(names(got), c.want) {
			t.Errorf("List(%q) = %q, want %q", c.filters, names(got), c.want)
		}
	}
	_, err := in.List(t.Context(), "name==a", "name==")
	wantKind(t, "List with a bad filter", err, errdefs.ErrInvalidArgument)
}

func namespaces(t *testing.T, s Subject) {
	other := s.Images.In(namespace.Scope{Name: "n"})
	create(t, s, img("i"))
	_, err := other.Get(t.Context(), "i")
	wantKind(t, "Get elsewhere", err, errdefs.ErrNotFound)
	_, err = other.Update(t.Context(), img("i"), image.Options{})
	wantKind(t, "Update elsewhere", err, errdefs.ErrNotFound)
	wantKind(t, "Delete elsewhere", other.Delete(t.Context(), "i", image.DeleteOptions{}), errdefs.ErrNotFound)
	wantNames(t, other)
	if _, err := other.Create(t.Context(), img("i"), image.Options{}); err != nil {
		t.Errorf("Create of the same name elsewhere: %v", err)
	}
	if err := other.Delete(t.Context(), "i", image.DeleteOptions{}); err != nil {
		t.Errorf("Delete: %v", err)
	}
	wantGet(t, s, img("i"))
}

func updateAll(t *testing.T, s Subject) {
	old := img("i")
	old.Labels = map[string]string{"a": "1", "b": "2"}
	old.Target.Annotations = map[string]string{"c": "1"}
	made := create(t, s, old)
	want := img("other")
	want.Name = "i"
	want.Labels = map[string]string{"b": "3"}
	want.Target.Annotations = map[string]string{"d": "1"}
	given := want
	given.Labels = map[string]string{"b": "3", "e": ""}
	got, err := s.Images.In(scope).Update(t.Context(), given, image.Options{})
	if err != nil {
		t.Fatalf("Update: %v", err)
	}
	wantSame(t, got, want)
	if !got.CreatedAt.Equal(made.CreatedAt) || got.UpdatedAt.Before(made.UpdatedAt) {
		t.Errorf("Update: created %v, updated %v; Create: %v, %v", got.CreatedAt, got.UpdatedAt, made.CreatedAt, made.UpdatedAt)
	}
	wantGet(t, s, want)
}

func updateFields(t *testing.T, s Subject) {
	old := img("i")
	old.Labels = map[string]string{"a": "1", "b.c/d": "2", "e": "3"}
	old.Target.Annotations = map[string]string{"a": "1", "b.c/d": "2", "e": "3"}
	given := img("other")
	given.Name = "i"
	given.Labels = map[string]string{"a": "9", "b.c/d": "", "new": "4"}
	given.Target.Annotations = map[string]string{"a": "8", "b.c/d": "", "new": "5"}
	for _, c := range []struct {
		fields []string
		want   func(*image.Image)
	}{
		{[]string{"labels.a"}, func(i *image.Image) { i.Labels["a"] = "9" }},
		{[]string{"labels.b.c/d"}, func(i *image.Image) { delete(i.Labels, "b.c/d") }},
		{[]string{"labels.e", "labels.new"}, func(i *image.Image) { delete(i.Labels, "e"); i.Labels["new"] = "4" }},
		{[]string{"labels"}, func(i *image.Image) { i.Labels = map[string]string{"a": "9", "new": "4"} }},
		{[]string{"annotations.a"}, func(i *image.Image) { i.Target.Annotations["a"] = "8" }},
		{[]string{"annotations.b.c/d", "annotations.e"}, func(i *image.Image) { i.Target.Annotations = map[string]string{"a": "1"} }},
		{[]string{"annotations"}, func(i *image.Image) { i.Target.Annotations = map[string]string{"a": "8", "new": "5"} }},
		{[]string{"target"}, func(i *image.Image) {
			i.Target = given.Target
			i.Target.Annotations = map[string]string{"a": "8", "new": "5"}
		}},
		{[]string{"target", "labels.new"}, func(i *image.Image) {
			i.Target = given.Target
			i.Target.Annotations = map[string]string{"a": "8", "new": "5"}
			i.Labels["new"] = "4"
		}},
	} {
		create(t, s, old)
		want := old
		want.Labels, want.Target.Annotations = maps.Clone(old.Labels), maps.Clone(old.Target.Annotations)
		c.want(&want)
		got, err := s.Images.In(scope).Update(t.Context(), given, image.Options{}, c.fields...)
		if err != nil {
			t.Errorf("Update of %q: %v", c.fields, err)
			continue
		}
		wantSame(t, got, want)
		wantGet(t, s, want)
		if err := s.Images.In(scope).Delete(t.Context(), "i", image.DeleteOptions{}); err != nil {
			t.Fatalf("Delete: %v", err)
		}
	}
}

func updateRefused(t *testing.T, s Subject) {
	old := img("i")
	old.Labels = map[string]string{"a": "1"}
	create(t, s, old)
	in := s.Images.In(scope)
	for _, field := range []string{"name", "created_at", "target.digest", "labels.", "annotations.", "", "label"} {
		given := img("i")
		given.Labels = map[string]string{"a": "2"}
		_, err := in.Update(t.Context(), given, image.Options{}, "labels.a", field)
		wantKind(t, fmt.Sprintf("Update of %q", field), err, errdefs.ErrInvalidArgument)
	}
	for what, breakIt := range broken {
		given := img("i")
		breakIt(&given)
		if given.Name != "i" {
			continue
		}
		_, err := in.Update(t.Context(), given, image.Options{})
		wantKind(t, "Update with "+what, err, errdefs.ErrInvalidArgument)
		_, err = in.Update(t.Context(), given, image.Options{}, "target", "labels")
		wantKind(t, "Update of everything with "+what, err, errdefs.ErrInvalidArgument)
	}
	wantGet(t, s, old)
}

func epoch(t *testing.T, s Subject) {
	in, first, later := s.Images.In(scope), time.Unix(86400, 5).UTC(), time.Unix(1, 0).UTC()
	got, err := in.Create(t.Context(), img("i"), image.Options{Time: &first})
	if err != nil || !got.CreatedAt.Equal(first) || !got.UpdatedAt.Equal(first) {
		t.Errorf("Create = %+v, %v; want both times %v", got, err, first)
	}
	got, err = in.Update(t.Context(), img("i"), image.Options{Time: &later})
	if err != nil || !got.CreatedAt.Equal(first) || !got.UpdatedAt.Equal(later) {
		t.Errorf("Update = %+v, %v; want times %v and %v", got, err, first, later)
	}
	for _, at := range []time.Time{time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC)} {
		_, err = in.Create(t.Context(), img("j"), image.Options{Time: &at})
		wantKind(t, "Create at "+at.String(), err, errdefs.ErrInvalidArgument)
		_, err = in.Update(t.Context(), img("i"), image.Options{Time: &at})
		wantKind(t, "Update at "+at.String(), err, errdefs.ErrInvalidArgument)
	}
}

func deleteTarget(t *testing.T, s Subject) {
	in := s.Images.In(scope)
	create(t, s, img("i"))
	create(t, s, img("i2"))
	err := in.Delete(t.Context(), "i", image.DeleteOptions{Target: digest.FromString("other")})
	wantKind(t, "Delete of another target", err, errdefs.ErrNotFound)
	wantNames(t, in, "i", "i2")
	if err := in.Delete(t.Context(), "i", image.DeleteOptions{Target: digest.FromString("i")}); err != nil {
		t.Errorf("Delete: %v", err)
	}
	wantNames(t, in, "i2")
	if err := in.Delete(t.Context(), "i2", image.DeleteOptions{Sync: true}); err != nil {
		t.Errorf("Delete: %v", err)
	}
	wantNames(t, in)
	create(t, s, img("i"))
	wantGet(t, s, img("i"))
}

func leased(t *testing.T, s Subject) {
	leases := s.Leases.In(scope)
	for _, id := range []string{"l", "l2"} {
		if _, err := leases.Create(t.Context(), id, nil); err != nil {
			t.Fatalf("Create of a lease: %v", err)
		}
	}
	in := s.Images.In(namespace.Scope{Name: "ns", Lease: "l"})
	i := img("i")
	i.Labels = expires
	if _, err := in.Create(t.Context(), i, image.Options{}); err != nil {
		t.Fatalf("Create: %v", err)
	}
	res := lease.Resource{ID: "i", Type: lease.TypeImages}
	wantResources(t, leases, "l", res)
	if _, err := s.Images.In(namespace.Scope{Name: "ns", Lease: "l2"}).Update(t.Context(), i, image.Options{}, "target"); err != nil {
		t.Fatalf("Update: %v", err)
	}
	wantResources(t, leases, "l2", res)
	if err := in.Delete(t.Context(), "i", image.DeleteOptions{}); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	wantResources(t, leases, "l")

	gone := s.Images.In(namespace.Scope{Name: "ns", Lease: "gone"})
	_, err := gone.Create(t.Context(), i, image.Options{})
	wantKind(t, "Create under no lease", err, errdefs.ErrNotFound)
	if err == nil || !strings.Contains(err.Error(), "lease does not exist") {
		t.Errorf("Create under no lease: %v, want the words of containerd", err)
	}
	wantNames(t, in)
	create(t, s, img("i"))
	_, err = gone.Update(t.Context(), i, image.Options{})
	wantKind(t, "Update under no lease", err, errdefs.ErrNotFound)
	wantGet(t, s, img("i"))
	_, err = gone.Create(t.Context(), i, image.Options{})
	if !errors.Is(err, errdefs.ErrAlreadyExists) && !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Create of a name that is taken under no lease: %v", err)
	}
}

func notLeased(t *testing.T, s Subject) {
	if _, err := s.Leases.In(scope).Create(t.Context(), "l", nil); err != nil {
		t.Fatalf("Create of a lease: %v", err)
	}
	if _, err := s.Images.In(namespace.Scope{Name: "ns", Lease: "l"}).Create(t.Context(), img("i"), image.Options{}); err != nil {
		t.Errorf("Create: %v", err)
	}
	wantResources(t, s.Leases.In(scope), "l")
	gone := s.Images.In(namespace.Scope{Name: "ns", Lease: "gone"})
	if _, err := gone.Create(t.Context(), img("j"), image.Options{}); err != nil {
		t.Errorf("Create under no lease: %v", err)
	}
	if _, err := gone.Update(t.Context(), img("j"), image.Options{}); err != nil {
		t.Errorf("Update under no lease: %v", err)
	}
	if _, err := gone.Get(t.Context(), "j"); err != nil {
		t.Errorf("Get under no lease: %v", err)
	}
	if err := gone.Delete(t.Context(), "j", image.DeleteOptions{}); err != nil {
		t.Errorf("Delete under no lease: %v", err)
	}
}

func concurrent(t *testing.T, s Subject) {
	const callers, each = 8, 5
	in := s.Images.In(scope)
	create(t, s, img("shared"))
	labels := map[string]string{}
	var all sync.WaitGroup
	won := make(chan int, callers)
	for n := range callers {
		key := fmt.Sprintf("k%d", n)
		labels[key] = "1"
		all.Go(func() {
			if _, err := in.Create(t.Context(), img("one"), image.Options{}); err == nil {
				won <- n
			} else if !errors.Is(err, errdefs.ErrAlreadyExists) {
				t.Errorf("Create: %v", err)
			}
			if _, err := in.Update(t.Context(), image.Image{Name: "shared", Labels: map[string]string{key: "1"}}, image.Options{}, "labels."+key); err != nil {
				t.Errorf("Update: %v", err)
			}
			for i := range each {
				name := fmt.Sprintf("%d-%d", n, i)
				if _, err := in.Create(t.Context(), img(name), image.Options{}); err != nil {
					t.Errorf("Create: %v", err)
				}
				if i%2 == 1 {
					if err := in.Delete(t.Context(), name, image.DeleteOptions{}); err != nil {
						t.Errorf("Delete: %v", err)
					}
				}
			}
		})
	}
	all.Wait()
	if n := len(won); n != 1 {
		t.Errorf("%d callers made the same image", n)
	}
	shared := img("shared")
	shared.Labels = labels
	wantGet(t, s, shared)
	left, err := in.List(t.Context())
	if want := callers*(each/2+1) + 2; err != nil || len(left) != want {
		t.Errorf("List = %d images, %v; want %d", len(left), err, want)
	}
}

func create(t *testing.T, s Subject, i image.Image) image.Image {
	t.Helper()
	made, err := s.Images.In(scope).Create(t.Context(), i, image.Options{})
	if err != nil {
		t.Fatalf("Create(%q): %v", i.Name, err)
	}
	return made
}

func names(images []image.Image) []string {
	var out []string
	for _, i := range images {
		out = append(out, i.Name)
	}
	return out
}

func wantNames(t *testing.T, s image.Store, want ...string) {
	t.Helper()
	got, err := s.List(t.Context())
	if err != nil || !slices.Equal(names(got), want) {
		t.Errorf("List = %q, %v; want %q", names(got), err, want)
	}
}

// wantSame compares all but the times.
func wantSame(t *testing.T, got, want image.Image) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(image.Image{}, "CreatedAt", "UpdatedAt")); d != "" {
		t.Errorf("image differs (-want +got):\n%s", d)
	}
}

func wantGet(t *testing.T, s Subject, want image.Image) {
	t.Helper()
	got, err := s.Images.In(scope).Get(t.Context(), want.Name)
	if err != nil {
		t.Errorf("Get(%q): %v", want.Name, err)
		return
	}
	wantSame(t, got, want)
}

func wantResources(t *testing.T, s lease.Store, id string, want ...lease.Resource) {
	t.Helper()
	got, err := s.ListResources(t.Context(), id)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("ListResources(%q) = %v, %v; want %v", id, got, err, want)
	}
}

func wantKind(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: %v, want %v", what, err, kind)
	}
}
