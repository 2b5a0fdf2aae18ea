package snapshotrpc

import (
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/snapshot"
)

var (
	toKind = map[snapshot.Kind]api.Kind{
		snapshot.Active: api.Kind_ACTIVE, snapshot.View: api.Kind_VIEW, snapshot.Committed: api.Kind_COMMITTED,
	}
	fromKind = map[api.Kind]snapshot.Kind{
		api.Kind_ACTIVE: snapshot.Active, api.Kind_VIEW: snapshot.View, api.Kind_COMMITTED: snapshot.Committed,
	}
)

func toInfo(i snapshot.Info) *api.Info {
	return &api.Info{
		Name: i.Name, Parent: i.Parent, Kind: toKind[i.Kind], Labels: i.Labels,
		CreatedAt: toTime(i.CreatedAt), UpdatedAt: toTime(i.UpdatedAt),
	}
}

func fromInfo(i *api.Info) snapshot.Info {
	return snapshot.Info{
		Name: i.GetName(), Parent: i.GetParent(), Kind: fromKind[i.GetKind()], Labels: i.GetLabels(),
		CreatedAt: fromTime(i.GetCreatedAt()), UpdatedAt: fromTime(i.GetUpdatedAt()),
	}
}

// toTime leaves out the time of a request, which has none.
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
