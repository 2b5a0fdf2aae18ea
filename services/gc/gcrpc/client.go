package gcrpc

import (
	"context"
	"errors"
	"io"
	"iter"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	gcv1 "github.com/gantryd/gantry/proto/gantry/gc/v1"
	"github.com/gantryd/gantry/services/gc"
)

// NewClient returns the owner at the other end of c.
func NewClient(c grpc.ClientConnInterface) gc.Owner { return client{c: gcv1.NewOwnerClient(c)} }

type client struct{ c gcv1.OwnerClient }

func (c client) Begin(ctx context.Context, epoch gc.Epoch) error {
	_, err := c.c.Begin(ctx, &gcv1.BeginRequest{Epoch: uint64(epoch)})
	return err
}

func (c client) Mark(ctx context.Context, epoch gc.Epoch) iter.Seq2[gc.Object, error] {
	return objects(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[gcv1.MarkResponse], error) {
		return c.c.Mark(ctx, &gcv1.MarkRequest{Epoch: uint64(epoch)})
	})
}

func (c client) Freeze(ctx context.Context, epoch gc.Epoch, deadline gc.Instant) iter.Seq2[gc.Object, error] {
	return objects(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[gcv1.FreezeResponse], error) {
		return c.c.Freeze(ctx, &gcv1.FreezeRequest{Epoch: uint64(epoch), DeadlineNs: int64(deadline)})
	})
}

// objects yields what a stream has in its batches.
func objects[T any, B interface {
	*T
	GetObjects() []*gcv1.Object
}](ctx context.Context, open func(context.Context) (grpc.ServerStreamingClient[T], error)) iter.Seq2[gc.Object, error] {
	return func(yield func(gc.Object, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // ends a stream that the caller has not read to its end
		stream, err := open(ctx)
		for err == nil {
			var batch *T
			if batch, err = stream.Recv(); err != nil {
				break
			}
			for _, o := range B(batch).GetObjects() {
				if !yield(fromObject(o), nil) {
					return
				}
			}
		}
		if !errors.Is(err, io.EOF) {
			yield(gc.Object{}, err)
		}
	}
}

func (c client) Sweep(ctx context.Context, epoch gc.Epoch, dead []gc.Node) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.c.Sweep(ctx)
	if err != nil {
		return 0, err
	}
	for first := true; first || len(dead) > 0; first = false {
		req := &gcv1.SweepRequest{Epoch: uint64(epoch)}
		for size := 0; len(dead) > 0 && len(req.Dead) < batchMax && size < batchSize; dead = dead[1:] {
			req.Dead = append(req.Dead, toNode(dead[0]))
			size += proto.Size(req.Dead[len(req.Dead)-1])
		}
		if err := stream.Send(req); err != nil {
			break // the answer says why
		}
	}
	resp, err := stream.CloseAndRecv()
	if err != nil {
		return 0, err
	}
	return int(resp.GetRemoved()), nil
}

func (c client) End(ctx context.Context, epoch gc.Epoch) error {
	_, err := c.c.End(ctx, &gcv1.EndRequest{Epoch: uint64(epoch)})
	return err
}
