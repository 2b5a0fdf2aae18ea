package imagerpc

import (
	"context"

	imagepb "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/gantryd/gantry/services/image"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
)

// NewClient returns the images at the other end of c.
func NewClient(c grpc.ClientConnInterface) image.Stores {
	return stores{c: imagepb.NewImagesClient(c)}
}

type stores struct{ c imagepb.ImagesClient }

func (s stores) In(scope namespace.Scope) image.Store { return client{c: s.c, scope: scope} }

type client struct {
	c     imagepb.ImagesClient
	scope namespace.Scope
}

func (c client) Get(ctx context.Context, name string) (image.Image, error) {
	resp, err := c.c.Get(rpc.WithScope(ctx, c.scope), &imagepb.GetImageRequest{Name: name})
	if err != nil {
		return image.Image{}, err
	}
	return fromImage(resp.GetImage()), nil
}

func (c client) List(ctx context.Context, filters ...string) ([]image.Image, error) {
	resp, err := c.c.List(rpc.WithScope(ctx, c.scope), &imagepb.ListImagesRequest{Filters: filters})
	if err != nil {
		return nil, err
	}
	var images []image.Image
	for _, i := range resp.GetImages() {
		images = append(images, fromImage(i))
	}
	return images, nil
}

func (c client) Create(ctx context.Context, i image.Image, o image.Options) (image.Image, error) {
	resp, err := c.c.Create(rpc.WithScope(ctx, c.scope), &imagepb.CreateImageRequest{
		Image:           toImage(i),
		SourceDateEpoch: toEpoch(o),
	})
	if err != nil {
		return image.Image{}, err
	}
	return fromImage(resp.GetImage()), nil
}

func (c client) Update(ctx context.Context, i image.Image, o image.Options, fields ...string) (image.Image, error) {
	req := &imagepb.UpdateImageRequest{Image: toImage(i), SourceDateEpoch: toEpoch(o)}
	if len(fields) > 0 {
		req.UpdateMask = &fieldmaskpb.FieldMask{Paths: fields}
	}
	resp, err := c.c.Update(rpc.WithScope(ctx, c.scope), req)
	if err != nil {
		return image.Image{}, err
	}
	return fromImage(resp.GetImage()), nil
}

func (c client) Delete(ctx context.Context, name string, o image.DeleteOptions) error {
	req := &imagepb.DeleteImageRequest{Name: name, Sync: o.Sync}
	if o.Target != "" {
		req.Target = &types.Descriptor{Digest: o.Target.String()}
	}
	_, err := c.c.Delete(rpc.WithScope(ctx, c.scope), req)
	return err
}
