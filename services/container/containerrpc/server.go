// Package containerrpc carries [container.Stores] across a socket in containerd's
// Containers service: [Register] puts one on a gRPC server and [NewClient] is
// the same at the other end. It translates and does nothing else.
package containerrpc

import (
	"context"

	api "github.com/containerd/containerd/api/services/containers/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/rpc"
)

// Register puts s on a server.
func Register(r grpc.ServiceRegistrar, s container.Stores) {
	api.RegisterContainersServer(r, &server{stores: s})
}

type server struct {
	api.UnsafeContainersServer // a method we forget must not compile
	stores                     container.Stores
}

func (s *server) store(ctx context.Context) (container.Store, error) {
	scope, err := rpc.Scope(ctx)
	if err != nil {
		return nil, err
	}
	return s.stores.In(scope), nil
}

func (s *server) Get(ctx context.Context, req *api.GetContainerRequest) (*api.GetContainerResponse, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	c, err := store.Get(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	return &api.GetContainerResponse{Container: toContainer(c)}, nil
}

func (s *server) List(ctx context.Context, req *api.ListContainersRequest) (*api.ListContainersResponse, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	all, err := store.List(ctx, req.Filters...)
	if err != nil {
		return nil, err
	}
	resp := &api.ListContainersResponse{}
	for _, c := range all {
		resp.Containers = append(resp.Containers, toContainer(c))
	}
	return resp, nil
}

func (s *server) ListStream(req *api.ListContainersRequest, stream api.Containers_ListStreamServer) error {
	store, err := s.store(stream.Context())
	if err != nil {
		return err
	}
	all, err := store.List(stream.Context(), req.Filters...)
	if err != nil {
		return err
	}
	for _, c := range all {
		if err := stream.Send(&api.ListContainerMessage{Container: toContainer(c)}); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) Create(ctx context.Context, req *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	c, err := store.Create(ctx, fromContainer(req.Container))
	if err != nil {
		return nil, err
	}
	return &api.CreateContainerResponse{Container: toContainer(c)}, nil
}

func (s *server) Update(ctx context.Context, req *api.UpdateContainerRequest) (*api.UpdateContainerResponse, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	c, err := store.Update(ctx, fromContainer(req.Container), req.UpdateMask.GetPaths()...)
	if err != nil {
		return nil, err
	}
	return &api.UpdateContainerResponse{Container: toContainer(c)}, nil
}

func (s *server) Delete(ctx context.Context, req *api.DeleteContainerRequest) (*emptypb.Empty, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	if err := store.Delete(ctx, req.ID); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}
