package leaserpc

import (
	"context"
	"testing"

	leasepb "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	leasev1 "github.com/gantryd/gantry/proto/gantry/lease/v1"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/lease/leasetest"
	"github.com/gantryd/gantry/services/namespace"
)

var incoming = metadata.NewIncomingContext(context.Background(), metadata.Pairs("containerd-namespace", "ns"))

// FuzzAddResource gives the server whatever a client may send: a resource is
// refused, or listed as it was sent.
func FuzzAddResource(f *testing.F) {
	for _, r := range []*leasepb.AddResourceRequest{
		nil,
		{ID: "l", Resource: &leasepb.Resource{ID: "i", Type: "images"}},
		{ID: "l", Resource: &leasepb.Resource{ID: "k", Type: "snapshots/overlayfs"}},
		{ID: "\x00", Resource: &leasepb.Resource{ID: "sha256:", Type: "content"}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var req leasepb.AddResourceRequest
		if proto.Unmarshal(b, &req) != nil {
			t.Skip()
		}
		m := &leasetest.Memory{}
		s := &server{stores: m}
		created, err := s.Create(incoming, &leasepb.CreateRequest{ID: req.ID})
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("Create: %v", err)
			}
			return
		}
		req.ID = created.Lease.ID
		if _, err := s.AddResource(incoming, &req); err != nil {
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsNotImplemented(err) {
				t.Fatalf("AddResource: %v", err)
			}
			return
		}
		got, err := m.In(namespace.Scope{Name: "ns"}).ListResources(incoming, req.ID)
		if err != nil || len(got) != 1 || got[0] != fromResource(req.Resource) {
			t.Errorf("ListResources = %v, %v; want %v", got, err, req.Resource)
		}
	})
}

// FuzzMembers gives the server whatever a daemon may send.
func FuzzMembers(f *testing.F) {
	for _, r := range []*leasev1.AddMemberRequest{
		nil,
		{Lease: &leasev1.Ref{Id: "l", Generation: 1}, Resource: &leasev1.Resource{Id: "i", Type: "images"}},
		{Lease: &leasev1.Ref{Id: "l"}, Resource: &leasev1.Resource{Id: "i", Type: "images"}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var req leasev1.AddMemberRequest
		if proto.Unmarshal(b, &req) != nil {
			t.Skip()
		}
		m := &leasetest.Members{}
		_, err := (&membersServer{members: m}).AddMember(incoming, &req)
		if err != nil && !errdefs.IsInvalidArgument(err) && !errdefs.IsNotImplemented(err) {
			t.Fatalf("AddMember: %v", err)
		}
		got, listErr := m.ListMembers(incoming, "ns", fromRef(req.Lease))
		want := lease.Resource{ID: req.GetResource().GetId(), Type: req.GetResource().GetType()}
		if listErr != nil || err == nil && (len(got) != 1 || got[0] != want) {
			t.Errorf("ListMembers = %v, %v; want %v", got, listErr, want)
		}
	})
}
