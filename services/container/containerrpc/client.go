package containerrpc

import (
	"context"
	"errors"
	"io"

	api "github.com/containerd/containerd/api/services/containers/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
)

// NewClient returns the stores at the other end of conn.
func NewClient(conn grpc.ClientConnInterface) container.Stores {
	return stores{api.NewContainersClient(conn)}
}

type stores struct{ c api.ContainersClient }

func (s stores) In(scope namespace.Scope) container.Store { return client{c: s.c, scope: scope} }

type client struct {
	c     api.ContainersClient
	scope namespace.Scope
}

func (c client) Get(ctx context.Context, id string) (container.Container, error) {
	resp, err := c.c.Get(rpc.WithScope(ctx, c.scope), &api.GetContainerRequest{ID: id})
	if err != nil {
		return container.Container{}, err
	}
	return fromContainer(resp.Container), nil
}

// List streams: one message per container, however many there are.
func (c client) List(ctx context.Context, filters ...string) ([]container.Container, error) {
	ctx, cancel := context.WithCancel(rpc.WithScope(ctx, c.scope))
	defer cancel()
	stream, err := c.c.ListStream(ctx, &api.ListContainersRequest{Filters: filters})
	if err != nil {
		return nil, err
	}
	var all []container.Container
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, fromContainer(m.Container))
	}
}

func (c client) Create(ctx context.Context, n container.Container) (container.Container, error) {
	resp, err := c.c.Create(rpc.WithScope(ctx, c.scope), &api.CreateContainerRequest{Container: toContainer(n)})
	if err != nil {
		return container.Container{}, err
	}
	return fromContainer(resp.Container), nil
}

func (c client) Update(ctx context.Context, n container.Container, fields ...string) (container.Container, error) {
	req := &api.UpdateContainerRequest{Container: toContainer(n)}
	if len(fields) > 0 {
		req.UpdateMask = &fieldmaskpb.FieldMask{Paths: fields}
	}
	resp, err := c.c.Update(rpc.WithScope(ctx, c.scope), req)
	if err != nil {
		return container.Container{}, err
	}
	return fromContainer(resp.Container), nil
}

func (c client) Delete(ctx context.Context, id string) error {
	_, err := c.c.Delete(rpc.WithScope(ctx, c.scope), &api.DeleteContainerRequest{ID: id})
	return err
}
