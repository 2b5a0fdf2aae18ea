package snapshotrpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	snapshotv1 "github.com/gantryd/gantry/proto/gantry/snapshot/v1"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/snapshot"
)

// RegisterMeter puts m on a server.
func RegisterMeter(r grpc.ServiceRegistrar, m snapshot.Meter) {
	snapshotv1.RegisterUsageServer(r, &meterServer{meter: m})
}

type meterServer struct {
	snapshotv1.UnsafeUsageServer // a method we forget must not compile
	meter                        snapshot.Meter
}

func (s *meterServer) Usage(req *snapshotv1.UsageRequest, stream snapshotv1.Usage_UsageServer) error {
	if req.GetSnapshotter() == "" {
		return errNoSnapshotter
	}
	scope, err := rpc.Scope(stream.Context())
	if err != nil {
		return err
	}
	all := s.meter.Usage(stream.Context(), scope, req.GetSnapshotter())
	return inBatches(all, toMeasured, func(batch []*snapshotv1.Measured) error {
		return stream.Send(&snapshotv1.UsageResponse{Snapshots: batch})
	})
}

var errNoSnapshotter = fmt.Errorf("snapshotter argument missing: %w", errdefs.ErrInvalidArgument)

// NewMeter returns the meter at the other end of c.
func NewMeter(c grpc.ClientConnInterface) snapshot.Meter {
	return meter{c: snapshotv1.NewUsageClient(c)}
}

type meter struct{ c snapshotv1.UsageClient }

func (m meter) Usage(ctx context.Context, scope namespace.Scope, snapshotter string) iter.Seq2[snapshot.Measured, error] {
	return func(yield func(snapshot.Measured, error) bool) {
		ctx, cancel := context.WithCancel(rpc.WithScope(ctx, scope))
		defer cancel() // a loop that is left ends the stream
		stream, err := m.c.Usage(ctx, &snapshotv1.UsageRequest{Snapshotter: snapshotter})
		if err != nil {
			yield(snapshot.Measured{}, err)
			return
		}
		for {
			resp, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(snapshot.Measured{}, err)
				return
			}
			for _, one := range resp.GetSnapshots() {
				if !yield(fromMeasured(one), nil) {
					return
				}
			}
		}
	}
}

func toMeasured(m snapshot.Measured) *snapshotv1.Measured {
	return &snapshotv1.Measured{
		Name: m.Name, Parent: m.Parent, Kind: string(m.Kind), Labels: m.Labels,
		CreatedAt: toTime(m.CreatedAt), UpdatedAt: toTime(m.UpdatedAt),
		Inodes: m.Inodes, Size: m.Size, Children: int64(m.Children), Leases: m.Leases, Unknown: m.Unknown,
	}
}

func fromMeasured(m *snapshotv1.Measured) snapshot.Measured {
	return snapshot.Measured{
		Info: snapshot.Info{
			Name: m.GetName(), Parent: m.GetParent(), Kind: snapshot.Kind(m.GetKind()), Labels: m.GetLabels(),
			CreatedAt: fromTime(m.GetCreatedAt()), UpdatedAt: fromTime(m.GetUpdatedAt()),
		},
		Usage:    snapshot.Usage{Inodes: m.GetInodes(), Size: m.GetSize()},
		Children: int(m.GetChildren()), Leases: m.GetLeases(), Unknown: m.GetUnknown(),
	}
}
