package imagerpc

import (
	"context"
	"testing"

	imagepb "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/image/imagetest"
	"github.com/gantryd/gantry/services/namespace"
)

var someTarget = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(""), Size: 1}

// FuzzUpdate gives the server whatever a client may send. The store holds only
// whole images, and what it holds comes through the wire unchanged.
func FuzzUpdate(f *testing.F) {
	seed := func(name string, paths ...string) {
		b, err := proto.Marshal(&imagepb.UpdateImageRequest{
			Image: &imagepb.Image{
				Name:   name,
				Labels: map[string]string{"a": "1", "b/c": ""},
				Target: toTarget(someTarget),
			},
			UpdateMask:      &fieldmaskpb.FieldMask{Paths: paths},
			SourceDateEpoch: &timestamppb.Timestamp{Seconds: 1},
		})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	seed("i")
	seed("i", "labels.a", "annotations.x", "target")
	seed("\x00", "labels.", "annotations")
	f.Add([]byte{})
	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs("containerd-namespace", "ns"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var req imagepb.UpdateImageRequest
		if proto.Unmarshal(b, &req) != nil {
			t.Skip()
		}
		m := imagetest.NewMemory(nil)
		s := &server{stores: m}
		if _, err := s.Create(ctx, &imagepb.CreateImageRequest{Image: req.Image, SourceDateEpoch: req.SourceDateEpoch}); err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("Create: %v", err)
			}
			return
		}
		if _, err := s.Update(ctx, &req); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Fatalf("Update: %v", err)
		}
		images, err := m.In(namespace.Scope{Name: "ns"}).List(ctx)
		if err != nil || len(images) != 1 {
			t.Fatalf("List = %v, %v", images, err)
		}
		if err := images[0].Check(); err != nil {
			t.Errorf("an image that is not whole is stored: %v", err)
		}
		sent := toImage(images[0])
		wire, err := proto.Marshal(sent)
		if err != nil {
			t.Fatalf("an image cannot be sent: %v", err)
		}
		var arrived imagepb.Image
		if err := proto.Unmarshal(wire, &arrived); err != nil {
			t.Fatalf("an image cannot be read: %v", err)
		}
		if d := cmp.Diff(sent, toImage(fromImage(&arrived)), protocmp.Transform()); d != "" {
			t.Errorf("what arrives is not what was sent:\n%s", d)
		}
	})
}
