// Package namespacerpc carries namespaces across a socket: [namespace.Store] in
// the form of containerd's Namespaces service, and [namespace.Holder], which
// only daemons of the suite are, in the suite's own.
package namespacerpc

import (
	"context"

	namespacepb "github.com/containerd/containerd/api/services/namespaces/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	namespacev1 "github.com/gantryd/gantry/proto/gantry/namespace/v1"
	"github.com/gantryd/gantry/services/namespace"
)

// Register puts s on a server.
func Register(r grpc.ServiceRegistrar, s namespace.Store) {
	namespacepb.RegisterNamespacesServer(r, &server{store: s})
}

// RegisterHolder puts h on a server.
func RegisterHolder(r grpc.ServiceRegistrar, h namespace.Holder) {
	namespacev1.RegisterHolderServer(r, &holderServer{holder: h})
}

type server struct {
	namespacepb.UnsafeNamespacesServer
	store namespace.Store
}

func (s *server) Get(ctx context.Context, req *namespacepb.GetNamespaceRequest) (*namespacepb.GetNamespaceResponse, error) {
	info, err := s.store.Get(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &namespacepb.GetNamespaceResponse{Namespace: toInfo(info)}, nil
}

// List ignores the filter, as containerd does.
func (s *server) List(ctx context.Context, _ *namespacepb.ListNamespacesRequest) (*namespacepb.ListNamespacesResponse, error) {
	infos, err := s.store.List(ctx)
	if err != nil {
		return nil, err
	}
	resp := &namespacepb.ListNamespacesResponse{}
	for _, info := range infos {
		resp.Namespaces = append(resp.Namespaces, toInfo(info))
	}
	return resp, nil
}

func (s *server) Create(ctx context.Context, req *namespacepb.CreateNamespaceRequest) (*namespacepb.CreateNamespaceResponse, error) {
	info, err := s.store.Create(ctx, fromInfo(req.GetNamespace()))
	if err != nil {
		return nil, err
	}
	return &namespacepb.CreateNamespaceResponse{Namespace: toInfo(info)}, nil
}

func (s *server) Update(ctx context.Context, req *namespacepb.UpdateNamespaceRequest) (*namespacepb.UpdateNamespaceResponse, error) {
	info, err := s.store.Update(ctx, fromInfo(req.GetNamespace()), req.GetUpdateMask().GetPaths()...)
	if err != nil {
		return nil, err
	}
	return &namespacepb.UpdateNamespaceResponse{Namespace: toInfo(info)}, nil
}

func (s *server) Delete(ctx context.Context, req *namespacepb.DeleteNamespaceRequest) (*emptypb.Empty, error) {
	if err := s.store.Delete(ctx, req.GetName()); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

type holderServer struct {
	namespacev1.UnsafeHolderServer
	holder namespace.Holder
}

func (s *holderServer) Holdings(ctx context.Context, _ *namespacev1.HoldingsRequest) (*namespacev1.HoldingsResponse, error) {
	holdings, err := s.holder.Holdings(ctx)
	if err != nil {
		return nil, err
	}
	resp := &namespacev1.HoldingsResponse{}
	for _, h := range holdings {
		resp.Holdings = append(resp.Holdings, &namespacev1.Holding{Namespace: h.Namespace, Kind: h.Kind, Of: h.Of})
	}
	return resp, nil
}

func toInfo(i namespace.Info) *namespacepb.Namespace {
	return &namespacepb.Namespace{Name: i.Name, Labels: i.Labels}
}

func fromInfo(n *namespacepb.Namespace) namespace.Info {
	return namespace.Info{Name: n.GetName(), Labels: n.GetLabels()}
}
