package activationrpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	api "github.com/containerd/containerd/api/services/mounts/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/mount/mountrpc"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
)

// NewClient returns the activations at the other end of c. The types and
// transforms that a caller sees to itself cannot be said in this service: they
// are [errdefs.ErrNotImplemented].
func NewClient(c grpc.ClientConnInterface) activation.Stores {
	return stores{c: api.NewMountsClient(c)}
}

type stores struct{ c api.MountsClient }

func (s stores) In(scope namespace.Scope) activation.Store { return client{c: s.c, scope: scope} }

type client struct {
	c     api.MountsClient
	scope namespace.Scope
}

func (c client) Activate(ctx context.Context, name string, mounts []mount.Mount, o activation.Options) (activation.Info, error) {
	if len(o.AllowTypes)+len(o.AllowTransforms) > 0 {
		return activation.Info{}, fmt.Errorf("activate with types of the caller's own: %w", errdefs.ErrNotImplemented)
	}
	resp, err := c.c.Activate(rpc.WithScope(ctx, c.scope), &api.ActivateRequest{
		Name: name, Mounts: mountrpc.To(mounts), Labels: o.Labels, Temporary: o.Temporary,
	})
	if err != nil {
		return activation.Info{}, err
	}
	return fromInfo(resp.GetInfo()), nil
}

func (c client) Deactivate(ctx context.Context, name string) error {
	_, err := c.c.Deactivate(rpc.WithScope(ctx, c.scope), &api.DeactivateRequest{Name: name})
	return err
}

func (c client) Info(ctx context.Context, name string) (activation.Info, error) {
	resp, err := c.c.Info(rpc.WithScope(ctx, c.scope), &api.InfoRequest{Name: name})
	if err != nil {
		return activation.Info{}, err
	}
	return fromInfo(resp.GetInfo()), nil
}

func (c client) List(ctx context.Context) iter.Seq2[activation.Info, error] {
	return func(yield func(activation.Info, error) bool) {
		ctx, cancel := context.WithCancel(rpc.WithScope(ctx, c.scope))
		defer cancel() // a loop that is left ends the stream
		stream, err := c.c.List(ctx, &api.ListRequest{})
		if err != nil {
			yield(activation.Info{}, err)
			return
		}
		for {
			resp, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(activation.Info{}, err)
				return
			}
			if !yield(fromInfo(resp.GetInfo()), nil) {
				return
			}
		}
	}
}
