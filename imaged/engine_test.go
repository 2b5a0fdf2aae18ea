package imaged

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	imagepb "github.com/containerd/containerd/api/services/images/v1"
	leasepb "github.com/containerd/containerd/api/services/leases/v1"
	namespacepb "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/image"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/namespace/namespacetest"
	"github.com/gantryd/gantry/services/suite"
)

func someImage(name string) image.Image {
	return image.Image{Name: name, Target: ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest,
		Digest:    digest.FromString(name),
		Size:      1,
	}}
}

// A tape is a bus that remembers.
type tape struct {
	// mu guards the fields below it.
	mu     sync.Mutex
	events []event.Event
}

func (b *tape) Publish(_ context.Context, e event.Event) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, e)
	return nil
}

func (b *tape) told() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, e := range b.events {
		out = append(out, fmt.Sprintf("%s %s %s %s", e.Namespace, e.Topic, e.Type, e.JSON))
	}
	return out
}

func TestEveryChangeIsTold(t *testing.T) {
	bus := &tape{}
	s := open(t, t.TempDir(), Needs{Events: bus})
	ctx, images, names := t.Context(), s.Images().In(scope), s.Namespaces()
	i := someImage("i")
	i.Labels = map[string]string{"a": "1", "b": "2"}
	steps := []error{}
	do := func(err error) { steps = append(steps, err) }
	_, err := names.Create(ctx, namespace.Info{Name: "n", Labels: map[string]string{"x": "1", "gone": ""}})
	do(err)
	_, err = names.Update(ctx, namespace.Info{Name: "n", Labels: map[string]string{"y": "2"}}, "labels.y")
	do(err)
	_, err = images.Create(ctx, i, image.Options{})
	do(err)
	_, err = images.Update(ctx, image.Image{Name: "i", Labels: map[string]string{"a": ""}}, image.Options{}, "labels.a")
	do(err)
	do(images.Delete(ctx, "i", image.DeleteOptions{}))
	_, err = s.Leases().In(scope).Create(ctx, "l", nil)
	do(err)
	do(names.Delete(ctx, "n"))
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
	// What is refused is not told.
	if names.Delete(ctx, "n") == nil || images.Delete(ctx, "i", image.DeleteOptions{}) == nil {
		t.Error("what is gone was deleted again")
	}
	defer work(t, s.Publish)()
	want := []string{
		`n /namespaces/create containerd.events.NamespaceCreate {"name":"n","labels":{"x":"1"}}`,
		`n /namespaces/update containerd.events.NamespaceUpdate {"name":"n","labels":{"x":"1","y":"2"}}`,
		`ns /images/create containerd.services.images.v1.ImageCreate {"name":"i","labels":{"a":"1","b":"2"}}`,
		`ns /images/update containerd.services.images.v1.ImageUpdate {"name":"i","labels":{"b":"2"}}`,
		`ns /images/delete containerd.services.images.v1.ImageDelete {"name":"i"}`,
		`n /namespaces/delete containerd.events.NamespaceDelete {"name":"n"}`,
	}
	eventually(t, func() string { return cmp.Diff(want, bus.told()) })
}

func TestANamespaceIsInUseByItsImagesAndLeases(t *testing.T) {
	s := open(t, t.TempDir(), Needs{})
	names := s.Namespaces()
	for _, ns := range []string{"a", "a-b", "a.b", "b"} {
		for _, name := range []string{"i", "j"} {
			if _, err := s.Images().In(namespace.Scope{Name: ns}).Create(t.Context(), someImage(name), image.Options{}); err != nil {
				t.Fatalf("Create: %v", err)
			}
		}
	}
	for ns, at := range map[string]time.Duration{"c": time.Hour, "d": -time.Hour} {
		labels := map[string]string{lease.LabelExpire: time.Now().Add(at).Format(time.RFC3339)}
		if _, err := s.Leases().In(namespace.Scope{Name: ns}).Create(t.Context(), "l", labels); err != nil {
			t.Fatalf("Create: %v", err)
		}
	}
	wantNamespaces(t, names, "a", "a-b", "a.b", "b", "c")
	err := names.Delete(t.Context(), "a")
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "it still has images") {
		t.Errorf("Delete of one with images: %v", err)
	}
	for _, name := range []string{"i", "j"} {
		if err := s.Images().In(namespace.Scope{Name: "a"}).Delete(t.Context(), name, image.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := names.Delete(t.Context(), "a"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Delete of one whose images are gone: %v", err)
	}
	if err := names.Delete(t.Context(), "d"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Delete of one with an expired lease: %v", err)
	}
	if err := names.Delete(t.Context(), "c"); err != nil {
		t.Errorf("Delete of one with a lease: %v", err)
	}
	wantNamespaces(t, names, "a-b", "a.b", "b")
}

func TestANamespaceEndsItsLeases(t *testing.T) {
	contents, _, needs := owners2()
	s := open(t, t.TempDir(), needs)
	if _, err := s.Namespaces().Create(t.Context(), namespace.Info{Name: "ns"}); err != nil {
		t.Fatal(err)
	}
	l := leased(t, s, "l")
	var all sync.WaitGroup
	for w := range 8 {
		all.Go(func() {
			for n := range leaseBatch / 4 {
				if _, err := s.Leases().In(scope).Create(t.Context(), fmt.Sprintf("%d-%d", w, n), nil); err != nil {
					t.Errorf("Create: %v", err)
				}
			}
		})
	}
	if _, err := s.Leases().In(namespace.Scope{Name: "other"}).Create(t.Context(), "l", nil); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	if err := s.Namespaces().Delete(t.Context(), "ns"); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	wantNamespaces(t, s.Namespaces(), "other")
	wantRows(t, s, "lease", 1)
	wantRows(t, s, "lease.ended", 2*leaseBatch+1)
	if silent, err := s.forgetAll(t.Context()); len(silent) > 0 || err != nil {
		t.Errorf("forgetAll = %v, %v", silent, err)
	}
	wantRows(t, s, "lease.ended", 0)
	wantMembers(t, &contents.Members, l, 0)
}

func TestASilentHolderIsNotWaitedForLong(t *testing.T) {
	s := open(t, t.TempDir(), Needs{Holders: map[string]namespace.Holder{suite.Taskd: stuck{}}})
	if _, err := s.Namespaces().Create(t.Context(), namespace.Info{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	wantNamespaces(t, s.Namespaces(), "a")
	if d := time.Since(start); d > 3*listTime {
		t.Errorf("List took %v", d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Namespaces().Delete(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Delete in too little time: %v", err)
	}
	wantNamespaces(t, s.Namespaces(), "a")
}

// stuck is a holder that never answers.
type stuck struct{}

func (stuck) Holdings(ctx context.Context) ([]namespace.Holding, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestRecordsAreBounded(t *testing.T) {
	s := open(t, t.TempDir(), Needs{})
	many := map[string]string{}
	for n := range 200 {
		many[fmt.Sprint(n)] = strings.Repeat("v", 4000)
	}
	escaped := map[string]string{}
	for n := range 20 {
		escaped[fmt.Sprint(n)] = strings.Repeat("\x00", 4000)
	}
	for _, labels := range []map[string]string{many, escaped, {"k": "\xff"}, {"\xff": "v"}} {
		i := someImage("i")
		i.Labels = labels
		_, err := s.Images().In(scope).Create(t.Context(), i, image.Options{})
		wantInvalid(t, "image", err)
		i = someImage("i")
		i.Target.Annotations = labels
		_, err = s.Images().In(scope).Create(t.Context(), i, image.Options{})
		wantInvalid(t, "image with annotations", err)
		_, err = s.Leases().In(scope).Create(t.Context(), "l", labels)
		wantInvalid(t, "lease", err)
		_, err = s.Namespaces().Create(t.Context(), namespace.Info{Name: "n", Labels: labels})
		wantInvalid(t, "namespace", err)
		_, err = s.Namespaces().Update(t.Context(), namespace.Info{Name: "n", Labels: labels})
		wantInvalid(t, "namespace", err)
	}
	_, err := s.Images().In(scope).Create(t.Context(), someImage("\xff"), image.Options{})
	wantInvalid(t, "image name", err)
	_, err = s.Leases().In(scope).Create(t.Context(), "\xff", nil)
	wantInvalid(t, "lease id", err)
	wantNamespaces(t, s.Namespaces())
	wantRows(t, s, "outbox", 0)
}

// TestMalformedRequestsAreRefused sends what no client of ours would.
func TestMalformedRequestsAreRefused(t *testing.T) {
	s := open(t, t.TempDir(), Needs{})
	conn := serve(t, s)
	images, leases, names := imagepb.NewImagesClient(conn), leasepb.NewLeasesClient(conn), namespacepb.NewNamespacesClient(conn)
	in := func(ns string) context.Context {
		return metadata.AppendToOutgoingContext(t.Context(), "containerd-namespace", ns)
	}
	if _, err := leases.Create(in("ns"), &leasepb.CreateRequest{ID: "l"}); err != nil {
		t.Fatal(err)
	}
	target := &imagepb.Image{Name: "i"}
	for _, c := range []struct {
		what string
		kind error
		call func() error
	}{
		{"a list without a namespace", errdefs.ErrFailedPrecondition, func() error { _, err := images.List(t.Context(), &imagepb.ListImagesRequest{}); return err }},
		{"a lease without a namespace", errdefs.ErrFailedPrecondition, func() error { _, err := leases.Create(t.Context(), &leasepb.CreateRequest{}); return err }},
		{"a namespace that is a path", errdefs.ErrInvalidArgument, func() error { _, err := images.List(in("../x"), &imagepb.ListImagesRequest{}); return err }},
		{"no image", errdefs.ErrInvalidArgument, func() error { _, err := images.Create(in("ns"), &imagepb.CreateImageRequest{}); return err }},
		{"an image without a target", errdefs.ErrInvalidArgument, func() error {
			_, err := images.Create(in("ns"), &imagepb.CreateImageRequest{Image: target})
			return err
		}},
		{"an update of no image", errdefs.ErrNotFound, func() error { _, err := images.Update(in("ns"), &imagepb.UpdateImageRequest{}); return err }},
		{"an update of the target to none", errdefs.ErrNotFound, func() error {
			_, err := images.Update(in("ns"), &imagepb.UpdateImageRequest{Image: target, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"target"}}})
			return err
		}},
		{"a date that is none", errdefs.ErrInvalidArgument, func() error {
			_, err := images.Create(in("ns"), &imagepb.CreateImageRequest{Image: target, SourceDateEpoch: &timestamppb.Timestamp{Seconds: 1 << 60, Nanos: -1}})
			return err
		}},
		{"no resource", errdefs.ErrNotImplemented, func() error { _, err := leases.AddResource(in("ns"), &leasepb.AddResourceRequest{ID: "l"}); return err }},
		{"no namespace to create", errdefs.ErrInvalidArgument, func() error { _, err := names.Create(t.Context(), &namespacepb.CreateNamespaceRequest{}); return err }},
		{"no namespace to update", errdefs.ErrInvalidArgument, func() error { _, err := names.Update(t.Context(), &namespacepb.UpdateNamespaceRequest{}); return err }},
	} {
		if err := c.call(); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v, want %v", c.what, err, c.kind)
		}
	}
	// An update that names labels needs no target.
	if _, err := s.Images().In(scope).Create(t.Context(), someImage("i"), image.Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := images.Update(in("ns"), &imagepb.UpdateImageRequest{Image: target, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}}}); err != nil {
		t.Errorf("Update of the labels: %v", err)
	}
}

func TestOpenRefusesWhatIsNotItsOwn(t *testing.T) {
	dir := t.TempDir()
	db, err := kv.Open(kv.Options{Dir: filepath.Join(dir, "db"), Owner: suite.Contentd, Schema: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Root: dir}, Needs{}); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "belongs to contentd") {
		t.Errorf("Open of contentd's directory: %v", err)
	}
	if err := (Config{Root: "relative"}).Check(); err == nil {
		t.Error("a relative root passes")
	}
}

func TestOpenTightensItsDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	open(t, dir, Needs{Holders: map[string]namespace.Holder{suite.Contentd: &namespacetest.Holder{}}})
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode of the directory is %v, %v", info.Mode(), err)
	}
}

func wantNamespaces(t *testing.T, s namespace.Store, want ...string) {
	t.Helper()
	infos, err := s.List(t.Context())
	var got []string
	for _, i := range infos {
		got = append(got, i.Name)
	}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("List: %v (-want +got)\n%s", err, d)
	}
}

func wantInvalid(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("%s: %v, want %v", what, err, errdefs.ErrInvalidArgument)
	}
}
