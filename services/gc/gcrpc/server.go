// Package gcrpc carries a [gc.Owner] across a socket, in the suite's own
// protocol: [Register] puts one on a gRPC server and [NewClient] is the same at
// the other end. It translates and does nothing else.
package gcrpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	gcv1 "github.com/gantryd/gantry/proto/gantry/gc/v1"
	"github.com/gantryd/gantry/services/gc"
)

const (
	// A batch has at most batchMax objects or nodes, and is sent once it has
	// batchSize bytes.
	batchMax  = 500
	batchSize = 1 << 20

	// sweepSize is how many bytes the nodes of a Sweep have at most.
	sweepSize = 64 << 20
)

// Register puts o on a server.
func Register(r grpc.ServiceRegistrar, o gc.Owner) {
	gcv1.RegisterOwnerServer(r, &server{owner: o})
}

type server struct {
	gcv1.UnsafeOwnerServer // a method we forget must not compile
	owner                  gc.Owner
}

func (s *server) Begin(ctx context.Context, req *gcv1.BeginRequest) (*gcv1.BeginResponse, error) {
	if err := s.owner.Begin(ctx, gc.Epoch(req.GetEpoch())); err != nil {
		return nil, err
	}
	return &gcv1.BeginResponse{}, nil
}

func (s *server) Mark(req *gcv1.MarkRequest, stream gcv1.Owner_MarkServer) error {
	return send(s.owner.Mark(stream.Context(), gc.Epoch(req.GetEpoch())), func(batch []*gcv1.Object) error {
		return stream.Send(&gcv1.MarkResponse{Objects: batch})
	})
}

func (s *server) Freeze(req *gcv1.FreezeRequest, stream gcv1.Owner_FreezeServer) error {
	all := s.owner.Freeze(stream.Context(), gc.Epoch(req.GetEpoch()), gc.Instant(req.GetDeadlineNs()))
	return send(all, func(batch []*gcv1.Object) error {
		return stream.Send(&gcv1.FreezeResponse{Objects: batch})
	})
}

// send sends objects in batches.
func send(all iter.Seq2[gc.Object, error], to func([]*gcv1.Object) error) error {
	var batch []*gcv1.Object
	size := 0
	for o, err := range all {
		if err != nil {
			return err
		}
		batch = append(batch, toObject(o))
		size += proto.Size(batch[len(batch)-1])
		if len(batch) == batchMax || size >= batchSize {
			if err := to(batch); err != nil {
				return err
			}
			batch, size = nil, 0
		}
	}
	if len(batch) == 0 {
		return nil
	}
	return to(batch)
}

func (s *server) Sweep(stream gcv1.Owner_SweepServer) error {
	epoch, dead, err := receive(stream)
	if err != nil {
		return err
	}
	n, err := s.owner.Sweep(stream.Context(), epoch, dead)
	if err != nil {
		return err
	}
	return stream.SendAndClose(&gcv1.SweepResponse{Removed: int64(n)})
}

// receive reads what is to be swept: all of it, or nothing is.
func receive(stream gcv1.Owner_SweepServer) (epoch gc.Epoch, dead []gc.Node, err error) {
	for size := 0; ; {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return epoch, dead, nil
		}
		if err != nil {
			return 0, nil, err
		}
		if epoch == 0 {
			epoch = gc.Epoch(req.GetEpoch())
		}
		if gc.Epoch(req.GetEpoch()) != epoch {
			return 0, nil, fmt.Errorf("sweep of epochs %d and %d: %w", epoch, req.GetEpoch(), errdefs.ErrInvalidArgument)
		}
		for _, n := range req.GetDead() {
			dead = append(dead, fromNode(n))
		}
		if size += proto.Size(req); len(dead) > gc.SweepMax || size > sweepSize {
			return 0, nil, fmt.Errorf("sweep of %d nodes and %d bytes or more, at most %d and %d: %w",
				len(dead), size, gc.SweepMax, sweepSize, errdefs.ErrInvalidArgument)
		}
	}
}

func (s *server) End(ctx context.Context, req *gcv1.EndRequest) (*gcv1.EndResponse, error) {
	if err := s.owner.End(ctx, gc.Epoch(req.GetEpoch())); err != nil {
		return nil, err
	}
	return &gcv1.EndResponse{}, nil
}
