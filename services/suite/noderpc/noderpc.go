// Package noderpc carries a [suite.Node] across a socket in containerd's
// services Version and Introspection: [Register] puts one on a gRPC server and
// [NewClient] is the same at the other end. It translates and does nothing
// else.
package noderpc

import (
	"context"
	"fmt"
	"strings"

	introspectionpb "github.com/containerd/containerd/api/services/introspection/v1"
	versionpb "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gantryd/gantry/services/suite"
)

// skipped ends the message of a plugin that is not there for a good reason.
// Clients tell it by these words from one that failed.
const skipped = ": skip plugin"

// Register answers Version and Introspection on r from n.
func Register(r grpc.ServiceRegistrar, n suite.Node) {
	s := server{node: n}
	versionpb.RegisterVersionServer(r, versionServer{server: s})
	introspectionpb.RegisterIntrospectionServer(r, introspectionServer{server: s})
}

type server struct{ node suite.Node }

type versionServer struct {
	versionpb.UnsafeVersionServer
	server
}

type introspectionServer struct {
	introspectionpb.UnsafeIntrospectionServer
	server
}

func (s versionServer) Version(ctx context.Context, _ *emptypb.Empty) (*versionpb.VersionResponse, error) {
	v, err := s.node.Version(ctx)
	if err != nil {
		return nil, err
	}
	return &versionpb.VersionResponse{Version: v.Version, Revision: v.Revision}, nil
}

func (s introspectionServer) Server(ctx context.Context, _ *emptypb.Empty) (*introspectionpb.ServerResponse, error) {
	v, err := s.node.Server(ctx)
	if err != nil {
		return nil, err
	}
	return &introspectionpb.ServerResponse{UUID: v.UUID, Pid: uint64(v.Pid), Pidns: v.PidNamespace}, nil
}

func (s introspectionServer) Plugins(ctx context.Context, req *introspectionpb.PluginsRequest) (*introspectionpb.PluginsResponse, error) {
	plugins, err := s.node.Plugins(ctx, req.Filters...)
	if err != nil {
		return nil, err
	}
	resp := &introspectionpb.PluginsResponse{}
	for _, p := range plugins {
		resp.Plugins = append(resp.Plugins, toPlugin(p))
	}
	return resp, nil
}

func (s introspectionServer) PluginInfo(ctx context.Context, req *introspectionpb.PluginInfoRequest) (*introspectionpb.PluginInfoResponse, error) {
	p, err := s.node.Plugin(ctx, req.Type, req.ID)
	if err != nil {
		return nil, err
	}
	if req.Options != nil {
		return nil, fmt.Errorf("plugin %s.%s tells no more: %w", req.Type, req.ID, errdefs.ErrNotImplemented)
	}
	return &introspectionpb.PluginInfoResponse{Plugin: toPlugin(p)}, nil
}

// NewClient returns the node at the other end of c.
func NewClient(c grpc.ClientConnInterface) suite.Node {
	return client{versionpb.NewVersionClient(c), introspectionpb.NewIntrospectionClient(c)}
}

type client struct {
	version       versionpb.VersionClient
	introspection introspectionpb.IntrospectionClient
}

func (c client) Version(ctx context.Context) (suite.Version, error) {
	resp, err := c.version.Version(ctx, &emptypb.Empty{})
	if err != nil {
		return suite.Version{}, err
	}
	return suite.Version{Version: resp.Version, Revision: resp.Revision}, nil
}

func (c client) Server(ctx context.Context) (suite.Server, error) {
	resp, err := c.introspection.Server(ctx, &emptypb.Empty{})
	if err != nil {
		return suite.Server{}, err
	}
	return suite.Server{UUID: resp.UUID, Pid: int(resp.Pid), PidNamespace: resp.Pidns}, nil
}

func (c client) Plugins(ctx context.Context, filters ...string) ([]suite.Plugin, error) {
	resp, err := c.introspection.Plugins(ctx, &introspectionpb.PluginsRequest{Filters: filters})
	if err != nil {
		return nil, err
	}
	var plugins []suite.Plugin
	for _, p := range resp.Plugins {
		plugins = append(plugins, fromPlugin(p))
	}
	return plugins, nil
}

func (c client) Plugin(ctx context.Context, typ, id string) (suite.Plugin, error) {
	resp, err := c.introspection.PluginInfo(ctx, &introspectionpb.PluginInfoRequest{Type: typ, ID: id})
	if err != nil {
		return suite.Plugin{}, err
	}
	return fromPlugin(resp.Plugin), nil
}

func toPlugin(p suite.Plugin) *introspectionpb.Plugin {
	out := &introspectionpb.Plugin{
		Type:         p.Type,
		ID:           p.ID,
		Requires:     p.Requires,
		Exports:      p.Exports,
		Capabilities: p.Capabilities,
	}
	for _, s := range p.Platforms {
		out.Platforms = append(out.Platforms, toPlatform(s))
	}
	if p.Skip != "" {
		out.InitErr = &status.Status{Code: int32(codes.Unknown), Message: p.Skip + skipped}
	}
	return out
}

func fromPlugin(p *introspectionpb.Plugin) suite.Plugin {
	out := suite.Plugin{
		Type:         p.GetType(),
		ID:           p.GetID(),
		Requires:     p.GetRequires(),
		Exports:      p.GetExports(),
		Capabilities: p.GetCapabilities(),
		Skip:         strings.TrimSuffix(p.GetInitErr().GetMessage(), skipped),
	}
	for _, platform := range p.GetPlatforms() {
		out.Platforms = append(out.Platforms, fromPlatform(platform))
	}
	return out
}

// toPlatform reads "os/architecture" or "os/architecture/variant".
func toPlatform(s string) *types.Platform {
	parts := strings.SplitN(s+"//", "/", 4)
	return &types.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
}

func fromPlatform(p *types.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}
