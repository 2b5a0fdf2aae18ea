// Package leaserpc carries leases across a socket: [lease.Stores] in the form of
// containerd's Leases service, and what only daemons of the suite say to each
// other, [lease.Registry] and [lease.Members], in the suite's own.
package leaserpc

import (
	"context"
	"fmt"

	leasepb "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	leasev1 "github.com/gantryd/gantry/proto/gantry/lease/v1"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
)

// Register puts s on a server.
func Register(r grpc.ServiceRegistrar, s lease.Stores) {
	leasepb.RegisterLeasesServer(r, &server{stores: s})
}

// RegisterRegistry puts g on a server.
func RegisterRegistry(r grpc.ServiceRegistrar, g lease.Registry) {
	leasev1.RegisterRegistryServer(r, &registryServer{registry: g})
}

// RegisterMembers puts m on a server.
func RegisterMembers(r grpc.ServiceRegistrar, m lease.Members) {
	leasev1.RegisterMembersServer(r, &membersServer{members: m})
}

type server struct {
	leasepb.UnsafeLeasesServer
	stores lease.Stores
}

func (s *server) in(ctx context.Context) (lease.Store, error) {
	scope, err := rpc.Scope(ctx)
	if err != nil {
		return nil, err
	}
	return s.stores.In(scope), nil
}

func (s *server) Create(ctx context.Context, req *leasepb.CreateRequest) (*leasepb.CreateResponse, error) {
	store, err := s.in(ctx)
	if err != nil {
		return nil, err
	}
	l, err := store.Create(ctx, req.GetID(), req.GetLabels())
	if err != nil {
		return nil, err
	}
	return &leasepb.CreateResponse{Lease: toLease(l)}, nil
}

func (s *server) Delete(ctx context.Context, req *leasepb.DeleteRequest) (*emptypb.Empty, error) {
	store, err := s.in(ctx)
	if err != nil {
		return nil, err
	}
	if err := store.Delete(ctx, req.GetID(), req.GetSync()); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func (s *server) List(ctx context.Context, req *leasepb.ListRequest) (*leasepb.ListResponse, error) {
	store, err := s.in(ctx)
	if err != nil {
		return nil, err
	}
	leases, err := store.List(ctx, req.GetFilters()...)
	if err != nil {
		return nil, err
	}
	resp := &leasepb.ListResponse{}
	for _, l := range leases {
		resp.Leases = append(resp.Leases, toLease(l))
	}
	return resp, nil
}

func (s *server) AddResource(ctx context.Context, req *leasepb.AddResourceRequest) (*emptypb.Empty, error) {
	store, err := s.in(ctx)
	if err != nil {
		return nil, err
	}
	if err := store.AddResource(ctx, req.GetID(), fromResource(req.GetResource())); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func (s *server) DeleteResource(ctx context.Context, req *leasepb.DeleteResourceRequest) (*emptypb.Empty, error) {
	store, err := s.in(ctx)
	if err != nil {
		return nil, err
	}
	if err := store.DeleteResource(ctx, req.GetID(), fromResource(req.GetResource())); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func (s *server) ListResources(ctx context.Context, req *leasepb.ListResourcesRequest) (*leasepb.ListResourcesResponse, error) {
	store, err := s.in(ctx)
	if err != nil {
		return nil, err
	}
	resources, err := store.ListResources(ctx, req.GetID())
	if err != nil {
		return nil, err
	}
	resp := &leasepb.ListResourcesResponse{}
	for _, r := range resources {
		resp.Resources = append(resp.Resources, &leasepb.Resource{ID: r.ID, Type: r.Type})
	}
	return resp, nil
}

type registryServer struct {
	leasev1.UnsafeRegistryServer
	registry lease.Registry
}

func (s *registryServer) Lookup(ctx context.Context, req *leasev1.LookupRequest) (*leasev1.LookupResponse, error) {
	scope, err := rpc.Scope(ctx)
	if err != nil {
		return nil, err
	}
	ref, err := s.registry.Lookup(ctx, namespace.Scope{Name: scope.Name, Lease: req.GetId()})
	if err != nil {
		return nil, err
	}
	return &leasev1.LookupResponse{Lease: toRef(ref)}, nil
}

type membersServer struct {
	leasev1.UnsafeMembersServer
	members lease.Members
}

// of reads what every request to Members has.
func of(ctx context.Context, l *leasev1.Ref) (string, lease.Ref, error) {
	scope, err := rpc.Scope(ctx)
	if err != nil {
		return "", lease.Ref{}, err
	}
	ref := fromRef(l)
	if ref.ID == "" || ref.Generation == 0 {
		return "", lease.Ref{}, fmt.Errorf("lease wants an id and a generation: %w", errdefs.ErrInvalidArgument)
	}
	return scope.Name, ref, nil
}

func (s *membersServer) AddMember(ctx context.Context, req *leasev1.AddMemberRequest) (*leasev1.AddMemberResponse, error) {
	ns, ref, err := of(ctx, req.GetLease())
	if err != nil {
		return nil, err
	}
	r := lease.Resource{ID: req.GetResource().GetId(), Type: req.GetResource().GetType()}
	if err := s.members.AddMember(ctx, ns, ref, r); err != nil {
		return nil, err
	}
	return &leasev1.AddMemberResponse{}, nil
}

func (s *membersServer) RemoveMember(ctx context.Context, req *leasev1.RemoveMemberRequest) (*leasev1.RemoveMemberResponse, error) {
	ns, ref, err := of(ctx, req.GetLease())
	if err != nil {
		return nil, err
	}
	r := lease.Resource{ID: req.GetResource().GetId(), Type: req.GetResource().GetType()}
	if err := s.members.RemoveMember(ctx, ns, ref, r); err != nil {
		return nil, err
	}
	return &leasev1.RemoveMemberResponse{}, nil
}

func (s *membersServer) ListMembers(ctx context.Context, req *leasev1.ListMembersRequest) (*leasev1.ListMembersResponse, error) {
	ns, ref, err := of(ctx, req.GetLease())
	if err != nil {
		return nil, err
	}
	resources, err := s.members.ListMembers(ctx, ns, ref)
	if err != nil {
		return nil, err
	}
	resp := &leasev1.ListMembersResponse{}
	for _, r := range resources {
		resp.Resources = append(resp.Resources, &leasev1.Resource{Id: r.ID, Type: r.Type})
	}
	return resp, nil
}

func (s *membersServer) DropMembers(ctx context.Context, req *leasev1.DropMembersRequest) (*leasev1.DropMembersResponse, error) {
	ns, ref, err := of(ctx, req.GetLease())
	if err != nil {
		return nil, err
	}
	if err := s.members.DropMembers(ctx, ns, ref); err != nil {
		return nil, err
	}
	return &leasev1.DropMembersResponse{}, nil
}

func toLease(l lease.Lease) *leasepb.Lease {
	return &leasepb.Lease{ID: l.ID, Labels: l.Labels, CreatedAt: timestamppb.New(l.CreatedAt)}
}

func fromLease(l *leasepb.Lease) lease.Lease {
	out := lease.Lease{ID: l.GetID(), Labels: l.GetLabels()}
	if at := l.GetCreatedAt(); at != nil {
		out.CreatedAt = at.AsTime()
	}
	return out
}

func toRef(r lease.Ref) *leasev1.Ref {
	return &leasev1.Ref{Id: r.ID, Generation: r.Generation}
}

func fromRef(r *leasev1.Ref) lease.Ref {
	return lease.Ref{ID: r.GetId(), Generation: r.GetGeneration()}
}

func fromResource(r *leasepb.Resource) lease.Resource {
	return lease.Resource{ID: r.GetID(), Type: r.GetType()}
}
