package namespacerpc

import (
	"context"
	"testing"

	namespacepb "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/namespace/namespacetest"
)

// FuzzUpdate gives the server whatever a client may send: what is stored has a
// good name and good labels.
func FuzzUpdate(f *testing.F) {
	for _, r := range []*namespacepb.UpdateNamespaceRequest{
		nil,
		{Namespace: &namespacepb.Namespace{Name: "a", Labels: map[string]string{"x": "1", "y": ""}}},
		{
			Namespace:  &namespacepb.Namespace{Name: "a", Labels: map[string]string{"x": "1"}},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels.x", "labels.\x00"}},
		},
		{Namespace: &namespacepb.Namespace{Name: "../a"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var req namespacepb.UpdateNamespaceRequest
		if proto.Unmarshal(b, &req) != nil {
			t.Skip()
		}
		m := namespacetest.NewMemory()
		if _, err := (&server{store: m}).Update(context.Background(), &req); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Fatalf("Update: %v", err)
		}
		infos, err := m.List(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range infos {
			if ident.Check(i.Name) != nil || label.Check(i.Labels) != nil || i.Name != req.GetNamespace().GetName() {
				t.Errorf("namespace %q with labels %v is stored", i.Name, i.Labels)
			}
			if _, err := proto.Marshal(toInfo(i)); err != nil {
				t.Errorf("a namespace cannot be sent: %v", err)
			}
		}
	})
}
