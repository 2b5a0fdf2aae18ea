package snapshotrpc

import (
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/mount"
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

func toMounts(all []mount.Mount) []*types.Mount {
	var out []*types.Mount
	for _, m := range all {
		out = append(out, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return out
}

func fromMounts(all []*types.Mount) []mount.Mount {
	var out []mount.Mount
	for _, m := range all {
		out = append(out, mount.Mount{Type: m.GetType(), Source: m.GetSource(), Target: m.GetTarget(), Options: m.GetOptions()})
	}
	return out
}
