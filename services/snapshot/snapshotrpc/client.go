package snapshotrpc

import (
	"context"
	"errors"
	"io"
	"iter"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/mount/mountrpc"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/snapshot"
)

// NewClient returns the snapshots at the other end of c. Whether a snapshotter
// is there is told by the methods of its store.
func NewClient(c grpc.ClientConnInterface) snapshot.Stores {
	return stores{c: api.NewSnapshotsClient(c)}
}

type stores struct{ c api.SnapshotsClient }

func (s stores) In(scope namespace.Scope, snapshotter string) (snapshot.Store, error) {
	return client{c: s.c, scope: scope, snapshotter: snapshotter}, nil
}

type client struct {
	c           api.SnapshotsClient
	scope       namespace.Scope
	snapshotter string
}

func (c client) Stat(ctx context.Context, key string) (snapshot.Info, error) {
	resp, err := c.c.Stat(rpc.WithScope(ctx, c.scope), &api.StatSnapshotRequest{Snapshotter: c.snapshotter, Key: key})
	if err != nil {
		return snapshot.Info{}, err
	}
	return fromInfo(resp.GetInfo()), nil
}

func (c client) Update(ctx context.Context, info snapshot.Info, fields ...string) (snapshot.Info, error) {
	req := &api.UpdateSnapshotRequest{Snapshotter: c.snapshotter, Info: toInfo(info)}
	if len(fields) > 0 {
		req.UpdateMask = &fieldmaskpb.FieldMask{Paths: fields}
	}
	resp, err := c.c.Update(rpc.WithScope(ctx, c.scope), req)
	if err != nil {
		return snapshot.Info{}, err
	}
	return fromInfo(resp.GetInfo()), nil
}

func (c client) Usage(ctx context.Context, key string) (snapshot.Usage, error) {
	resp, err := c.c.Usage(rpc.WithScope(ctx, c.scope), &api.UsageRequest{Snapshotter: c.snapshotter, Key: key})
	if err != nil {
		return snapshot.Usage{}, err
	}
	return snapshot.Usage{Inodes: resp.GetInodes(), Size: resp.GetSize()}, nil
}

func (c client) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	resp, err := c.c.Mounts(rpc.WithScope(ctx, c.scope), &api.MountsRequest{Snapshotter: c.snapshotter, Key: key})
	if err != nil {
		return nil, err
	}
	return mountrpc.From(resp.GetMounts()), nil
}

func (c client) Prepare(ctx context.Context, key, parent string, o snapshot.Options) ([]mount.Mount, error) {
	resp, err := c.c.Prepare(rpc.WithScope(ctx, c.scope), &api.PrepareSnapshotRequest{
		Snapshotter: c.snapshotter, Key: key, Parent: parent, Labels: o.Labels,
	})
	if err != nil {
		return nil, err
	}
	return mountrpc.From(resp.GetMounts()), nil
}

func (c client) View(ctx context.Context, key, parent string, o snapshot.Options) ([]mount.Mount, error) {
	resp, err := c.c.View(rpc.WithScope(ctx, c.scope), &api.ViewSnapshotRequest{
		Snapshotter: c.snapshotter, Key: key, Parent: parent, Labels: o.Labels,
	})
	if err != nil {
		return nil, err
	}
	return mountrpc.From(resp.GetMounts()), nil
}

func (c client) Commit(ctx context.Context, name, key string, o snapshot.Options) error {
	_, err := c.c.Commit(rpc.WithScope(ctx, c.scope), &api.CommitSnapshotRequest{
		Snapshotter: c.snapshotter, Name: name, Key: key, Labels: o.Labels, Parent: o.Parent,
	})
	return err
}

func (c client) Remove(ctx context.Context, key string) error {
	_, err := c.c.Remove(rpc.WithScope(ctx, c.scope), &api.RemoveSnapshotRequest{Snapshotter: c.snapshotter, Key: key})
	return err
}

func (c client) List(ctx context.Context, filters ...string) iter.Seq2[snapshot.Info, error] {
	return func(yield func(snapshot.Info, error) bool) {
		ctx, cancel := context.WithCancel(rpc.WithScope(ctx, c.scope))
		defer cancel() // a loop that is left ends the stream
		stream, err := c.c.List(ctx, &api.ListSnapshotsRequest{Snapshotter: c.snapshotter, Filters: filters})
		if err != nil {
			yield(snapshot.Info{}, err)
			return
		}
		for {
			resp, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(snapshot.Info{}, err)
				return
			}
			for _, i := range resp.GetInfo() {
				if !yield(fromInfo(i), nil) {
					return
				}
			}
		}
	}
}

func (c client) Cleanup(ctx context.Context) error {
	_, err := c.c.Cleanup(rpc.WithScope(ctx, c.scope), &api.CleanupRequest{Snapshotter: c.snapshotter})
	return err
}
