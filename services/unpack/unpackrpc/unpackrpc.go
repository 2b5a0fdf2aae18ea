// Package unpackrpc carries [unpack.Services] across a socket: [Register] puts
// one on a gRPC server and [NewClient] is the same at the other end. It
// translates and does nothing else.
package unpackrpc

import (
	"context"
	"errors"
	"io"
	"iter"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	unpackv1 "github.com/gantryd/gantry/proto/gantry/unpack/v1"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/unpack"
)

// Register puts s on a server.
func Register(r grpc.ServiceRegistrar, s unpack.Services) {
	unpackv1.RegisterUnpackerServer(r, &server{services: s})
}

type server struct {
	unpackv1.UnsafeUnpackerServer // a method we forget must not compile
	services                      unpack.Services
}

func (s *server) Unpack(req *unpackv1.UnpackRequest, stream grpc.ServerStreamingServer[unpackv1.UnpackResponse]) error {
	scope, err := rpc.Scope(stream.Context())
	if err != nil {
		return err
	}
	service, err := s.services.In(scope, req.GetSnapshotter())
	if err != nil {
		return err
	}
	for p, err := range service.Unpack(stream.Context(), fromLayers(req.GetLayers())) {
		if err != nil {
			return err
		}
		if err := stream.Send(toProgress(p)); err != nil {
			return err
		}
	}
	return nil
}

// NewClient returns the services at the other end of c.
func NewClient(c grpc.ClientConnInterface) unpack.Services {
	return services{c: unpackv1.NewUnpackerClient(c)}
}

type services struct{ c unpackv1.UnpackerClient }

func (s services) In(scope namespace.Scope, snapshotter string) (unpack.Service, error) {
	return client{c: s.c, scope: scope, snapshotter: snapshotter}, nil
}

type client struct {
	c           unpackv1.UnpackerClient
	scope       namespace.Scope
	snapshotter string
}

func (c client) Unpack(ctx context.Context, layers []unpack.Layer) iter.Seq2[unpack.Progress, error] {
	return func(yield func(unpack.Progress, error) bool) {
		// A caller who breaks off ends the call at the other end too.
		ctx, cancel := context.WithCancel(rpc.WithScope(ctx, c.scope))
		defer cancel()
		stream, err := c.c.Unpack(ctx, &unpackv1.UnpackRequest{Snapshotter: c.snapshotter, Layers: toLayers(layers)})
		for err == nil {
			var resp *unpackv1.UnpackResponse
			if resp, err = stream.Recv(); err == nil && !yield(fromProgress(resp), nil) {
				return
			}
		}
		if !errors.Is(err, io.EOF) {
			yield(unpack.Progress{}, err)
		}
	}
}

func toLayers(layers []unpack.Layer) []*unpackv1.Layer {
	all := make([]*unpackv1.Layer, len(layers))
	for i, l := range layers {
		all[i] = &unpackv1.Layer{
			MediaType: l.MediaType, Digest: l.Digest.String(), Size: l.Size,
			DiffId: l.DiffID.String(), Ingest: l.Ingest, Labels: l.Labels,
		}
	}
	return all
}

func fromLayers(layers []*unpackv1.Layer) []unpack.Layer {
	all := make([]unpack.Layer, len(layers))
	for i, l := range layers {
		all[i] = unpack.Layer{
			Descriptor: ocispec.Descriptor{MediaType: l.GetMediaType(), Digest: digest.Digest(l.GetDigest()), Size: l.GetSize()},
			DiffID:     digest.Digest(l.GetDiffId()), Ingest: l.GetIngest(), Labels: l.GetLabels(),
		}
	}
	return all
}

func toProgress(p unpack.Progress) *unpackv1.UnpackResponse {
	return &unpackv1.UnpackResponse{Layer: int32(p.Layer), Name: p.Name, Phase: string(p.Phase), Done: p.Done, Total: p.Total}
}

func fromProgress(p *unpackv1.UnpackResponse) unpack.Progress {
	return unpack.Progress{
		Layer: int(p.GetLayer()), Name: p.GetName(), Phase: unpack.Phase(p.GetPhase()), Done: p.GetDone(), Total: p.GetTotal(),
	}
}
