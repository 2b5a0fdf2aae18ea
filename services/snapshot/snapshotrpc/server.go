// Package snapshotrpc carries [snapshot.Stores] across a socket in containerd's
// Snapshots service: [Register] puts one on a gRPC server and [NewClient] is
// the same at the other end. It translates and does nothing else.
package snapshotrpc

import (
	"context"
	"iter"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gantryd/gantry/services/mount/mountrpc"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/snapshot"
)

const (
	// batchMax is how many snapshots of a list are in one message at most, and
	// batchSize how many bytes they have unless it is one: labels may be long,
	// and a message that is longer than 16 MiB is refused.
	batchMax  = 100
	batchSize = 4 << 20
)

// Register puts s on a server.
func Register(r grpc.ServiceRegistrar, s snapshot.Stores) {
	api.RegisterSnapshotsServer(r, &server{stores: s})
}

type server struct {
	api.UnsafeSnapshotsServer // a method we forget must not compile
	stores                    snapshot.Stores
}

func (s *server) store(ctx context.Context, snapshotter string) (snapshot.Store, error) {
	// As containerd: what is missing in a call that lacks both.
	if snapshotter == "" {
		return nil, errNoSnapshotter
	}
	scope, err := rpc.Scope(ctx)
	if err != nil {
		return nil, err
	}
	return s.stores.In(scope, snapshotter)
}

func (s *server) Prepare(ctx context.Context, req *api.PrepareSnapshotRequest) (*api.PrepareSnapshotResponse, error) {
	store, err := s.store(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	m, err := store.Prepare(ctx, req.Key, req.Parent, snapshot.Options{Labels: req.Labels})
	if err != nil {
		return nil, err
	}
	return &api.PrepareSnapshotResponse{Mounts: mountrpc.To(m)}, nil
}

func (s *server) View(ctx context.Context, req *api.ViewSnapshotRequest) (*api.ViewSnapshotResponse, error) {
	store, err := s.store(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	m, err := store.View(ctx, req.Key, req.Parent, snapshot.Options{Labels: req.Labels})
	if err != nil {
		return nil, err
	}
	return &api.ViewSnapshotResponse{Mounts: mountrpc.To(m)}, nil
}

func (s *server) Mounts(ctx context.Context, req *api.MountsRequest) (*api.MountsResponse, error) {
	store, err := s.store(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	m, err := store.Mounts(ctx, req.Key)
	if err != nil {
		return nil, err
	}
	return &api.MountsResponse{Mounts: mountrpc.To(m)}, nil
}

func (s *server) Commit(ctx context.Context, req *api.CommitSnapshotRequest) (*emptypb.Empty, error) {
	store, err := s.store(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	if err := store.Commit(ctx, req.Name, req.Key, snapshot.Options{Labels: req.Labels, Parent: req.Parent}); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func (s *server) Remove(ctx context.Context, req *api.RemoveSnapshotRequest) (*emptypb.Empty, error) {
	store, err := s.store(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	if err := store.Remove(ctx, req.Key); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func (s *server) Stat(ctx context.Context, req *api.StatSnapshotRequest) (*api.StatSnapshotResponse, error) {
	store, err := s.store(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	i, err := store.Stat(ctx, req.Key)
	if err != nil {
		return nil, err
	}
	return &api.StatSnapshotResponse{Info: toInfo(i)}, nil
}

func (s *server) Update(ctx context.Context, req *api.UpdateSnapshotRequest) (*api.UpdateSnapshotResponse, error) {
	store, err := s.store(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	i, err := store.Update(ctx, fromInfo(req.GetInfo()), req.GetUpdateMask().GetPaths()...)
	if err != nil {
		return nil, err
	}
	return &api.UpdateSnapshotResponse{Info: toInfo(i)}, nil
}

func (s *server) List(req *api.ListSnapshotsRequest, stream api.Snapshots_ListServer) error {
	store, err := s.store(stream.Context(), req.Snapshotter)
	if err != nil {
		return err
	}
	return inBatches(store.List(stream.Context(), req.Filters...), toInfo, func(batch []*api.Info) error {
		return stream.Send(&api.ListSnapshotsResponse{Info: batch})
	})
}

// inBatches sends the messages of all. The list is not held while one is sent.
func inBatches[T any, M proto.Message](all iter.Seq2[T, error], message func(T) M, send func([]M) error) error {
	var batch []M
	size := 0
	for one, err := range all {
		if err != nil {
			return err
		}
		m := message(one)
		n := proto.Size(m)
		if len(batch) == batchMax || len(batch) > 0 && size+n > batchSize {
			if err := send(batch); err != nil {
				return err
			}
			batch, size = nil, 0 // the message that was sent has it
		}
		batch, size = append(batch, m), size+n
	}
	if len(batch) == 0 {
		return nil
	}
	return send(batch)
}

func (s *server) Usage(ctx context.Context, req *api.UsageRequest) (*api.UsageResponse, error) {
	store, err := s.store(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	u, err := store.Usage(ctx, req.Key)
	if err != nil {
		return nil, err
	}
	return &api.UsageResponse{Size: u.Size, Inodes: u.Inodes}, nil
}

func (s *server) Cleanup(ctx context.Context, req *api.CleanupRequest) (*emptypb.Empty, error) {
	store, err := s.store(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	if err := store.Cleanup(ctx); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}
