package namespacerpc

import (
	"context"

	namespacepb "github.com/containerd/containerd/api/services/namespaces/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	namespacev1 "github.com/gantryd/gantry/proto/gantry/namespace/v1"
	"github.com/gantryd/gantry/services/namespace"
)

// NewClient returns the namespaces at the other end of c.
func NewClient(c grpc.ClientConnInterface) namespace.Store {
	return client{c: namespacepb.NewNamespacesClient(c)}
}

// NewHolder returns the holder at the other end of c.
func NewHolder(c grpc.ClientConnInterface) namespace.Holder {
	return holder{c: namespacev1.NewHolderClient(c)}
}

type client struct{ c namespacepb.NamespacesClient }

func (c client) Get(ctx context.Context, name string) (namespace.Info, error) {
	resp, err := c.c.Get(ctx, &namespacepb.GetNamespaceRequest{Name: name})
	if err != nil {
		return namespace.Info{}, err
	}
	return fromInfo(resp.GetNamespace()), nil
}

func (c client) List(ctx context.Context) ([]namespace.Info, error) {
	resp, err := c.c.List(ctx, &namespacepb.ListNamespacesRequest{})
	if err != nil {
		return nil, err
	}
	var infos []namespace.Info
	for _, n := range resp.GetNamespaces() {
		infos = append(infos, fromInfo(n))
	}
	return infos, nil
}

func (c client) Create(ctx context.Context, info namespace.Info) (namespace.Info, error) {
	resp, err := c.c.Create(ctx, &namespacepb.CreateNamespaceRequest{Namespace: toInfo(info)})
	if err != nil {
		return namespace.Info{}, err
	}
	return fromInfo(resp.GetNamespace()), nil
}

func (c client) Update(ctx context.Context, info namespace.Info, fields ...string) (namespace.Info, error) {
	req := &namespacepb.UpdateNamespaceRequest{Namespace: toInfo(info)}
	if len(fields) > 0 {
		req.UpdateMask = &fieldmaskpb.FieldMask{Paths: fields}
	}
	resp, err := c.c.Update(ctx, req)
	if err != nil {
		return namespace.Info{}, err
	}
	return fromInfo(resp.GetNamespace()), nil
}

func (c client) Delete(ctx context.Context, name string) error {
	_, err := c.c.Delete(ctx, &namespacepb.DeleteNamespaceRequest{Name: name})
	return err
}

type holder struct{ c namespacev1.HolderClient }

func (h holder) Holdings(ctx context.Context) ([]namespace.Holding, error) {
	resp, err := h.c.Holdings(ctx, &namespacev1.HoldingsRequest{})
	if err != nil {
		return nil, err
	}
	var holdings []namespace.Holding
	for _, d := range resp.GetHoldings() {
		holdings = append(holdings, namespace.Holding{Namespace: d.GetNamespace(), Kind: d.GetKind(), Of: d.GetOf()})
	}
	return holdings, nil
}
