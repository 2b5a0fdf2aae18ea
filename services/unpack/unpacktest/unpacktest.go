// Package unpacktest holds the promises of [unpack.Service] and one in memory
// that keeps them.
package unpacktest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contenttest"
	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/lease/leasetest"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/unpack"
)

// A Node is what a service uses.
type Node struct {
	Blobs  content.Stores
	Leases lease.Registry
}

// A Fixture is what the promises are tested on.
type Fixture struct {
	Services    unpack.Services
	Snapshots   snapshot.Stores // what it unpacks into
	Snapshotter string
	Members     lease.Members // of the snapshots
}

// Run tests the fixtures that open returns. It calls open once per promise and
// expects no snapshots each time.
func Run(t *testing.T, open func(t *testing.T, n Node) Fixture) {
	for _, p := range promises {
		t.Run(p.name, func(t *testing.T) {
			leases := &leasetest.Memory{}
			blobs := contenttest.NewMemory(leases)
			watched := watchedStores{blobs, new(sync.Once), make(chan struct{})}
			f := open(t, Node{Blobs: watched, Leases: leases})
			p.check(t, suite{Fixture: f, blobs: blobs, seen: watched.seen, leases: leases})
		})
	}
}

var promises = []struct {
	name  string
	check func(*testing.T, suite)
}{
	{"every layer becomes a snapshot on the one below, and is told of until it is over", unpacked},
	{"what is there is used", existing},
	{"a layer that others commit meanwhile is used", overtaken},
	{"what is made and what is there belongs to the lease", leased},
	{"a lease that is not there is not found", leaseless},
	{"a snapshotter that is not there is refused", noSnapshotter},
	{"layers that make no sense are refused", senseless},
	{"a blob that is missing, or another namespace's, is not found", missing},
	{"a layer whose bytes are others is refused, and there is no snapshot of it", lying},
	{"a layer that is not what the config says is refused, and there is no snapshot of it", unlike},
	{"a media type that cannot be read is not implemented", unknown},
	{"bytes may arrive while the call waits for them", arriving},
	{"an ingest that ends without a blob is not found", aborted},
	{"many calls unpack the same", many},
	{"a caller who breaks off ends the call, and leaves nothing", brokenOff},
	{"a call whose context has ended makes nothing", ended},
}

type suite struct {
	Fixture
	blobs  content.Stores
	seen   chan struct{} // closed when the service was told of an ingest
	leases *leasetest.Memory
}

var (
	one = namespace.Scope{Name: "one"}
	two = namespace.Scope{Name: "two"}
)

// archives are the layers of an image.
func archives() [][]byte {
	return [][]byte{
		difftest.Tar(difftest.Dir("etc"), difftest.File("etc/a", "1"), difftest.File("gone", "x")),
		difftest.Tar(difftest.File("etc/b", "2"), difftest.File(".wh.gone", "")),
		difftest.Tar(difftest.File("etc/a", "3"), difftest.Link("etc/c", "etc/a")),
	}
}

// image returns layers, whose blobs it puts into namespace one.
func (s suite) image(t *testing.T) []unpack.Layer {
	t.Helper()
	var layers []unpack.Layer
	for _, a := range archives() {
		l := packed(a)
		s.put(t, l.Digest, difftest.Gzip(a))
		layers = append(layers, l)
	}
	return layers
}

func packed(archive []byte) unpack.Layer {
	b := difftest.Gzip(archive)
	return unpack.Layer{
		Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(b), Size: int64(len(b))},
		DiffID:     digest.FromBytes(archive),
	}
}

func (s suite) put(t *testing.T, d digest.Digest, b []byte) {
	t.Helper()
	w, err := s.blobs.In(one).Writer(t.Context(), content.WriterOptions{Ref: "put " + d.String(), Expected: d, Total: int64(len(b))})
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return
	}
	if err == nil {
		defer w.Close()
		if _, err = w.Write(b); err == nil {
			err = w.Commit(t.Context(), 0, d, nil)
		}
	}
	if err != nil {
		t.Fatalf("put %s: %v", d, err)
	}
}

func (s suite) in(t *testing.T, scope namespace.Scope) unpack.Service {
	t.Helper()
	service, err := s.Services.In(scope, s.Snapshotter)
	if err != nil {
		t.Fatalf("In(%v): %v", scope, err)
	}
	return service
}

// unpack unpacks and returns what it was told.
func (s suite) unpack(ctx context.Context, t *testing.T, scope namespace.Scope, layers []unpack.Layer) ([]unpack.Progress, error) {
	t.Helper()
	var told []unpack.Progress
	err := unpack.Wait(s.in(t, scope).Unpack(ctx, layers), func(p unpack.Progress) { told = append(told, p) })
	return told, err
}

func (s suite) snapshots(t *testing.T, scope namespace.Scope) snapshot.Store {
	t.Helper()
	store, err := s.Snapshots.In(scope, s.Snapshotter)
	if err != nil {
		t.Fatalf("Snapshots.In(%v): %v", scope, err)
	}
	return store
}

func names(t *testing.T, layers []unpack.Layer) []string {
	t.Helper()
	all, err := unpack.Names(layers)
	if err != nil {
		t.Fatalf("Names: %v", err)
	}
	return all
}

// wantSnapshots finds the snapshots of names in namespace one, and no others.
func (s suite) wantSnapshots(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for i, err := range s.snapshots(t, one).List(t.Context()) {
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		got = append(got, i.Name)
		if i.Kind != snapshot.Committed {
			t.Errorf("snapshot %s is %s", i.Name, i.Kind)
		}
	}
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("snapshots %q, want %q", got, want)
	}
	for _, name := range want {
		if info, err := s.snapshots(t, one).Stat(t.Context(), name); err == nil && info.Parent != "" && !slices.Contains(want, info.Parent) {
			t.Errorf("snapshot %s is on %s", name, info.Parent)
		}
	}
}

func wantKind(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: got error %v, want %v", what, err, kind)
	}
}

// wantOver finds that each layer was told of, and was in that phase in the end.
func wantOver(t *testing.T, told []unpack.Progress, layers []unpack.Layer, phases ...unpack.Phase) {
	t.Helper()
	all := names(t, layers)
	last := make(map[int]unpack.Progress)
	for _, p := range told {
		if p.Layer < 0 || p.Layer >= len(all) || p.Name != all[p.Layer] {
			t.Errorf("told of %+v, which is no layer", p)
		}
		if before, ok := last[p.Layer]; ok && before.Phase.Over() {
			t.Errorf("told of %+v after %+v", p, before)
		}
		last[p.Layer] = p
	}
	for i := range layers {
		if !slices.Contains(phases, last[i].Phase) {
			t.Errorf("layer %d: told at last %+v, want one of %v", i, last[i], phases)
		}
	}
}

func unpacked(t *testing.T, s suite) {
	layers := s.image(t)
	layers[1].Labels = map[string]string{"test": "labelled"}
	told, err := s.unpack(t.Context(), t, one, layers)
	if err != nil {
		t.Fatalf("Unpack: %v", err)
	}
	wantOver(t, told, layers, unpack.Committed)
	all := names(t, layers)
	s.wantSnapshots(t, all...)
	parent := ""
	for i, name := range all {
		info, err := s.snapshots(t, one).Stat(t.Context(), name)
		if err != nil || info.Parent != parent || info.Labels["test"] != layers[i].Labels["test"] {
			t.Errorf("layer %d is %+v, %v; want one on %q with labels %v", i, info, err, parent, layers[i].Labels)
		}
		parent = name
	}
}

func existing(t *testing.T, s suite) {
	layers := s.image(t)
	if _, err := s.unpack(t.Context(), t, one, layers[:2]); err != nil {
		t.Fatalf("Unpack: %v", err)
	}
	told, err := s.unpack(t.Context(), t, one, layers)
	if err != nil {
		t.Fatalf("Unpack again: %v", err)
	}
	wantOver(t, slices.DeleteFunc(slices.Clone(told), func(p unpack.Progress) bool { return p.Layer == 2 }), layers[:2], unpack.Existed)
	s.wantSnapshots(t, names(t, layers)...)
	told, err = s.unpack(t.Context(), t, one, layers)
	if err != nil {
		t.Fatalf("Unpack once more: %v", err)
	}
	wantOver(t, told, layers, unpack.Existed)
	for i := range s.snapshots(t, two).List(t.Context()) {
		t.Errorf("another namespace has %s", i.Name)
	}
}

// overtaken commits the snapshots in the way of other clients while a call waits
// for bytes.
func overtaken(t *testing.T, s suite) {
	layers := s.image(t)
	all := names(t, layers)
	late := packed(difftest.Tar(difftest.File("late", "x")))
	late.Ingest = "late"
	layers = append(layers, late)
	var once sync.Once
	err := unpack.Wait(s.in(t, one).Unpack(t.Context(), layers), func(unpack.Progress) {
		once.Do(func() {
			store := s.snapshots(t, one)
			parent := ""
			for i, name := range all {
				key := fmt.Sprint("key ", i)
				_, err := store.Prepare(t.Context(), key, parent, snapshot.Options{})
				if err == nil {
					err = store.Commit(t.Context(), name, key, snapshot.Options{})
				}
				if errors.Is(err, errdefs.ErrAlreadyExists) {
					err = store.Remove(t.Context(), key)
				}
				if err != nil {
					t.Errorf("layer %d by others: %v", i, err)
				}
				parent = name
			}
			s.put(t, late.Digest, difftest.Gzip(difftest.Tar(difftest.File("late", "x"))))
		})
	})
	if err != nil {
		t.Errorf("Unpack: %v", err)
	}
	s.wantSnapshots(t, names(t, layers)...)
}

func (s suite) members(t *testing.T, id string) []string {
	t.Helper()
	l, err := s.leases.Lookup(t.Context(), namespace.Scope{Name: one.Name, Lease: id})
	if err != nil {
		t.Fatalf("Lookup: %v", err)
	}
	all, err := s.Members.ListMembers(t.Context(), one.Name, l)
	if err != nil {
		t.Fatalf("ListMembers: %v", err)
	}
	var ids []string
	for _, r := range all {
		ids = append(ids, r.ID)
	}
	slices.Sort(ids)
	return ids
}

func leased(t *testing.T, s suite) {
	layers := s.image(t)
	for _, id := range []string{"first", "second"} {
		if _, err := s.leases.In(one).Create(t.Context(), id, nil); err != nil {
			t.Fatalf("Create: %v", err)
		}
		part := layers
		if id == "first" {
			part = layers[:2]
		}
		if _, err := s.unpack(t.Context(), t, namespace.Scope{Name: one.Name, Lease: id}, part); err != nil {
			t.Fatalf("Unpack: %v", err)
		}
		want := slices.Sorted(slices.Values(names(t, part)))
		if got := s.members(t, id); !slices.Equal(got, want) {
			t.Errorf("lease %s has %q, want %q", id, got, want)
		}
	}
}

func leaseless(t *testing.T, s suite) {
	_, err := s.unpack(t.Context(), t, namespace.Scope{Name: one.Name, Lease: "none"}, s.image(t))
	wantKind(t, "Unpack", err, errdefs.ErrNotFound)
	s.wantSnapshots(t)
}

func noSnapshotter(t *testing.T, s suite) {
	layers := s.image(t)
	service, err := s.Services.In(one, "none")
	if err == nil {
		err = unpack.Wait(service.Unpack(t.Context(), layers), nil)
	}
	wantKind(t, "Unpack", err, errdefs.ErrInvalidArgument)
}
