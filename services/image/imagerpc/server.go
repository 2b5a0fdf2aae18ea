// Package imagerpc carries an [image.Stores] across a socket, in the form of
// containerd's Images service.
package imagerpc

import (
	"context"
	"fmt"
	"time"

	imagepb "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/image"
	"github.com/gantryd/gantry/services/rpc"
)

// Register puts s on a server.
func Register(r grpc.ServiceRegistrar, s image.Stores) {
	imagepb.RegisterImagesServer(r, &server{stores: s})
}

type server struct {
	imagepb.UnsafeImagesServer
	stores image.Stores
}

func (s *server) in(ctx context.Context) (image.Store, error) {
	scope, err := rpc.Scope(ctx)
	if err != nil {
		return nil, err
	}
	return s.stores.In(scope), nil
}

func (s *server) Get(ctx context.Context, req *imagepb.GetImageRequest) (*imagepb.GetImageResponse, error) {
	store, err := s.in(ctx)
	if err != nil {
		return nil, err
	}
	i, err := store.Get(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &imagepb.GetImageResponse{Image: toImage(i)}, nil
}

func (s *server) List(ctx context.Context, req *imagepb.ListImagesRequest) (*imagepb.ListImagesResponse, error) {
	store, err := s.in(ctx)
	if err != nil {
		return nil, err
	}
	images, err := store.List(ctx, req.GetFilters()...)
	if err != nil {
		return nil, err
	}
	resp := &imagepb.ListImagesResponse{}
	for _, i := range images {
		resp.Images = append(resp.Images, toImage(i))
	}
	return resp, nil
}

func (s *server) Create(ctx context.Context, req *imagepb.CreateImageRequest) (*imagepb.CreateImageResponse, error) {
	store, err := s.in(ctx)
	if err != nil {
		return nil, err
	}
	o, err := fromEpoch(req.GetSourceDateEpoch())
	if err != nil {
		return nil, err
	}
	i, err := store.Create(ctx, fromImage(req.GetImage()), o)
	if err != nil {
		return nil, err
	}
	return &imagepb.CreateImageResponse{Image: toImage(i)}, nil
}

func (s *server) Update(ctx context.Context, req *imagepb.UpdateImageRequest) (*imagepb.UpdateImageResponse, error) {
	store, err := s.in(ctx)
	if err != nil {
		return nil, err
	}
	o, err := fromEpoch(req.GetSourceDateEpoch())
	if err != nil {
		return nil, err
	}
	i, err := store.Update(ctx, fromImage(req.GetImage()), o, req.GetUpdateMask().GetPaths()...)
	if err != nil {
		return nil, err
	}
	return &imagepb.UpdateImageResponse{Image: toImage(i)}, nil
}

func (s *server) Delete(ctx context.Context, req *imagepb.DeleteImageRequest) (*emptypb.Empty, error) {
	store, err := s.in(ctx)
	if err != nil {
		return nil, err
	}
	o := image.DeleteOptions{Target: digest.Digest(req.GetTarget().GetDigest()), Sync: req.GetSync()}
	if err := store.Delete(ctx, req.GetName(), o); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func toImage(i image.Image) *imagepb.Image {
	return &imagepb.Image{
		Name:      i.Name,
		Labels:    i.Labels,
		Target:    toTarget(i.Target),
		CreatedAt: toTime(i.CreatedAt),
		UpdatedAt: toTime(i.UpdatedAt),
	}
}

func fromImage(i *imagepb.Image) image.Image {
	return image.Image{
		Name:      i.GetName(),
		Labels:    i.GetLabels(),
		Target:    fromTarget(i.GetTarget()),
		CreatedAt: fromTime(i.GetCreatedAt()),
		UpdatedAt: fromTime(i.GetUpdatedAt()),
	}
}

func toTarget(d ocispec.Descriptor) *types.Descriptor {
	return &types.Descriptor{
		MediaType:   d.MediaType,
		Digest:      d.Digest.String(),
		Size:        d.Size,
		Annotations: d.Annotations,
	}
}

func fromTarget(d *types.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType:   d.GetMediaType(),
		Digest:      digest.Digest(d.GetDigest()),
		Size:        d.GetSize(),
		Annotations: d.GetAnnotations(),
	}
}

// toTime leaves out a time that is not set.
func toTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func fromTime(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

// fromEpoch is [errdefs.ErrInvalidArgument] for what is not a time.
func fromEpoch(t *timestamppb.Timestamp) (image.Options, error) {
	if t == nil {
		return image.Options{}, nil
	}
	if err := t.CheckValid(); err != nil {
		return image.Options{}, fmt.Errorf("source date epoch: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	at := t.AsTime()
	return image.Options{Time: &at}, nil
}

func toEpoch(o image.Options) *timestamppb.Timestamp {
	if o.Time == nil {
		return nil
	}
	return timestamppb.New(*o.Time)
}
