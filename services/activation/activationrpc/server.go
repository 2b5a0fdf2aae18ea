// Package activationrpc carries [activation.Stores] across a socket in
// containerd's Mounts service: [Register] puts one on a gRPC server and
// [NewClient] is the same at the other end. It translates and does nothing else.
package activationrpc

import (
	"context"
	"fmt"

	api "github.com/containerd/containerd/api/services/mounts/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/mount/mountrpc"
	"github.com/gantryd/gantry/services/rpc"
)

// Register puts s on a server.
func Register(r grpc.ServiceRegistrar, s activation.Stores) {
	api.RegisterMountsServer(r, &server{stores: s})
}

type server struct {
	api.UnsafeMountsServer // a method we forget must not compile
	stores                 activation.Stores
}

func (s *server) store(ctx context.Context) (activation.Store, error) {
	scope, err := rpc.Scope(ctx)
	if err != nil {
		return nil, err
	}
	return s.stores.In(scope), nil
}

func (s *server) Activate(ctx context.Context, req *api.ActivateRequest) (*api.ActivateResponse, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	i, err := store.Activate(ctx, req.Name, mountrpc.From(req.Mounts), activation.Options{Labels: req.Labels, Temporary: req.Temporary})
	if err != nil {
		return nil, err
	}
	return &api.ActivateResponse{Info: toInfo(i)}, nil
}

func (s *server) Deactivate(ctx context.Context, req *api.DeactivateRequest) (*emptypb.Empty, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	if err := store.Deactivate(ctx, req.Name); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func (s *server) Info(ctx context.Context, req *api.InfoRequest) (*api.InfoResponse, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	i, err := store.Info(ctx, req.Name)
	if err != nil {
		return nil, err
	}
	return &api.InfoResponse{Info: toInfo(i)}, nil
}

// Update is in the service and does nothing in containerd either.
func (s *server) Update(ctx context.Context, _ *api.UpdateRequest) (*api.UpdateResponse, error) {
	if _, err := s.store(ctx); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("update of an activation: %w", errdefs.ErrNotImplemented)
}

// List ignores the filters of the request, as containerd does.
func (s *server) List(_ *api.ListRequest, stream api.Mounts_ListServer) error {
	store, err := s.store(stream.Context())
	if err != nil {
		return err
	}
	for i, err := range store.List(stream.Context()) {
		if err != nil {
			return err
		}
		if err := stream.Send(&api.ListMessage{Info: toInfo(i)}); err != nil {
			return err
		}
	}
	return nil
}
