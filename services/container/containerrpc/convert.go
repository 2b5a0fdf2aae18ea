package containerrpc

import (
	"time"

	api "github.com/containerd/containerd/api/services/containers/v1"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/typed"
)

func toContainer(c container.Container) *api.Container {
	p := &api.Container{
		ID:          c.ID,
		Labels:      c.Labels,
		Image:       c.Image,
		Runtime:     &api.Container_Runtime{Name: c.Runtime.Name, Options: toAny(c.Runtime.Options)},
		Spec:        toAny(c.Spec),
		Snapshotter: c.Snapshotter,
		SnapshotKey: c.SnapshotKey,
		CreatedAt:   toTime(c.CreatedAt),
		UpdatedAt:   toTime(c.UpdatedAt),
		Sandbox:     c.SandboxID,
	}
	if len(c.Extensions) > 0 {
		p.Extensions = make(map[string]*anypb.Any, len(c.Extensions))
		for k, v := range c.Extensions {
			p.Extensions[k] = toAny(&v)
		}
	}
	return p
}

func fromContainer(p *api.Container) container.Container {
	c := container.Container{
		ID:          p.GetID(),
		Labels:      p.GetLabels(),
		Image:       p.GetImage(),
		Runtime:     container.Runtime{Name: p.GetRuntime().GetName(), Options: fromAny(p.GetRuntime().GetOptions())},
		Spec:        fromAny(p.GetSpec()),
		Snapshotter: p.GetSnapshotter(),
		SnapshotKey: p.GetSnapshotKey(),
		CreatedAt:   fromTime(p.GetCreatedAt()),
		UpdatedAt:   fromTime(p.GetUpdatedAt()),
		SandboxID:   p.GetSandbox(),
	}
	if all := p.GetExtensions(); len(all) > 0 {
		c.Extensions = make(map[string]typed.Value, len(all))
		for k, v := range all {
			if v == nil {
				v = &anypb.Any{}
			}
			c.Extensions[k] = *fromAny(v)
		}
	}
	return c
}

func toAny(v *typed.Value) *anypb.Any {
	if v == nil {
		return nil
	}
	return &anypb.Any{TypeUrl: v.URL, Value: v.Data}
}

func fromAny(a *anypb.Any) *typed.Value {
	if a == nil {
		return nil
	}
	return &typed.Value{URL: a.TypeUrl, Data: a.Value}
}

func toTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func fromTime(p *timestamppb.Timestamp) time.Time {
	if p == nil {
		return time.Time{}
	}
	return p.AsTime()
}
