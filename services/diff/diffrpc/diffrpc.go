// Package diffrpc carries [diff.Services] across a socket in containerd's Diff
// service: [Register] puts one on a gRPC server and [NewClient] is the same at
// the other end. It translates and does nothing else.
package diffrpc

import (
	"context"

	api "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/mount/mountrpc"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/typed"
)

// Register puts s on a server.
func Register(r grpc.ServiceRegistrar, s diff.Services) {
	api.RegisterDiffServer(r, &server{services: s})
}

type server struct {
	api.UnsafeDiffServer // a method we forget must not compile
	services             diff.Services
}

func (s *server) Apply(ctx context.Context, req *api.ApplyRequest) (*api.ApplyResponse, error) {
	scope, err := rpc.Scope(ctx)
	if err != nil {
		return nil, err
	}
	o := diff.ApplyOptions{SyncFS: req.SyncFs}
	for name, v := range req.Payloads {
		if o.Payloads == nil {
			o.Payloads = make(map[string]typed.Value)
		}
		o.Payloads[name] = typed.Value{URL: v.GetTypeUrl(), Data: v.GetValue()}
	}
	d, err := s.services.In(scope).Apply(ctx, fromDescriptor(req.Diff), mountrpc.From(req.Mounts), o)
	if err != nil {
		return nil, err
	}
	return &api.ApplyResponse{Applied: toDescriptor(d)}, nil
}

func (s *server) Diff(ctx context.Context, req *api.DiffRequest) (*api.DiffResponse, error) {
	scope, err := rpc.Scope(ctx)
	if err != nil {
		return nil, err
	}
	o := diff.DiffOptions{MediaType: req.MediaType, Ref: req.Ref, Labels: req.Labels}
	if req.SourceDateEpoch != nil {
		at := req.SourceDateEpoch.AsTime()
		o.SourceDateEpoch = &at
	}
	d, err := s.services.In(scope).Diff(ctx, mountrpc.From(req.Left), mountrpc.From(req.Right), o)
	if err != nil {
		return nil, err
	}
	return &api.DiffResponse{Diff: toDescriptor(d)}, nil
}

// NewClient returns the service at the other end of c.
func NewClient(c grpc.ClientConnInterface) diff.Services {
	return services{c: api.NewDiffClient(c)}
}

type services struct{ c api.DiffClient }

func (s services) In(scope namespace.Scope) diff.Service { return client{c: s.c, scope: scope} }

type client struct {
	c     api.DiffClient
	scope namespace.Scope
}

func (c client) Apply(ctx context.Context, layer ocispec.Descriptor, mounts []mount.Mount, o diff.ApplyOptions) (ocispec.Descriptor, error) {
	req := &api.ApplyRequest{Diff: toDescriptor(layer), Mounts: mountrpc.To(mounts), SyncFs: o.SyncFS}
	for name, v := range o.Payloads {
		if req.Payloads == nil {
			req.Payloads = make(map[string]*anypb.Any)
		}
		req.Payloads[name] = &anypb.Any{TypeUrl: v.URL, Value: v.Data}
	}
	resp, err := c.c.Apply(rpc.WithScope(ctx, c.scope), req)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return fromDescriptor(resp.GetApplied()), nil
}

func (c client) Diff(ctx context.Context, lower, upper []mount.Mount, o diff.DiffOptions) (ocispec.Descriptor, error) {
	req := &api.DiffRequest{
		Left: mountrpc.To(lower), Right: mountrpc.To(upper), MediaType: o.MediaType, Ref: o.Ref, Labels: o.Labels,
	}
	if o.SourceDateEpoch != nil {
		req.SourceDateEpoch = timestamppb.New(*o.SourceDateEpoch)
	}
	resp, err := c.c.Diff(rpc.WithScope(ctx, c.scope), req)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return fromDescriptor(resp.GetDiff()), nil
}

func toDescriptor(d ocispec.Descriptor) *types.Descriptor {
	return &types.Descriptor{MediaType: d.MediaType, Digest: d.Digest.String(), Size: d.Size, Annotations: d.Annotations}
}

func fromDescriptor(d *types.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: d.GetMediaType(), Digest: digest.Digest(d.GetDigest()), Size: d.GetSize(), Annotations: d.GetAnnotations(),
	}
}
