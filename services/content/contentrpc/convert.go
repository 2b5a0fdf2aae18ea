package contentrpc

import (
	"time"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/content"
)

func toInfo(i content.Info) *api.Info {
	return &api.Info{
		Digest:    i.Digest.String(),
		Size:      i.Size,
		CreatedAt: toTime(i.CreatedAt),
		UpdatedAt: toTime(i.UpdatedAt),
		Labels:    i.Labels,
	}
}

func fromInfo(p *api.Info) content.Info {
	return content.Info{
		Digest:    digest.Digest(p.GetDigest()),
		Size:      p.GetSize(),
		CreatedAt: fromTime(p.GetCreatedAt()),
		UpdatedAt: fromTime(p.GetUpdatedAt()),
		Labels:    p.GetLabels(),
	}
}

func toStatus(s content.Status) *api.Status {
	return &api.Status{
		Ref:       s.Ref,
		Offset:    s.Offset,
		Total:     s.Total,
		Expected:  s.Expected.String(),
		StartedAt: toTime(s.StartedAt),
		UpdatedAt: toTime(s.UpdatedAt),
	}
}

func fromStatus(p *api.Status) content.Status {
	return content.Status{
		Ref:       p.GetRef(),
		Offset:    p.GetOffset(),
		Total:     p.GetTotal(),
		Expected:  digest.Digest(p.GetExpected()),
		StartedAt: fromTime(p.GetStartedAt()),
		UpdatedAt: fromTime(p.GetUpdatedAt()),
	}
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
