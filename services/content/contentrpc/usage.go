package contentrpc

import (
	"context"

	"google.golang.org/grpc"

	contentv1 "github.com/gantryd/gantry/proto/gantry/content/v1"
	"github.com/gantryd/gantry/services/content"
)

// RegisterMeter puts m on a server.
func RegisterMeter(r grpc.ServiceRegistrar, m content.Meter) {
	contentv1.RegisterUsageServer(r, &meterServer{meter: m})
}

type meterServer struct {
	contentv1.UnsafeUsageServer // a method we forget must not compile
	meter                       content.Meter
}

func (s *meterServer) Usage(ctx context.Context, _ *contentv1.UsageRequest) (*contentv1.UsageResponse, error) {
	u, err := s.meter.Usage(ctx)
	if err != nil {
		return nil, err
	}
	resp := &contentv1.UsageResponse{
		Blobs: toAmount(u.Blobs), Ingests: toAmount(u.Ingests), Trash: toAmount(u.Trash), Quarantine: toAmount(u.Quarantine),
		Free: u.Free,
	}
	for _, n := range u.Namespaces {
		resp.Namespaces = append(resp.Namespaces, &contentv1.NamespaceUsage{
			Namespace: n.Namespace, Blobs: n.Blobs, Bytes: n.Bytes, Shared: n.Shared,
		})
	}
	return resp, nil
}

// NewMeter returns the meter at the other end of c.
func NewMeter(c grpc.ClientConnInterface) content.Meter {
	return meter{c: contentv1.NewUsageClient(c)}
}

type meter struct{ c contentv1.UsageClient }

func (m meter) Usage(ctx context.Context) (content.Usage, error) {
	resp, err := m.c.Usage(ctx, &contentv1.UsageRequest{})
	if err != nil {
		return content.Usage{}, err
	}
	u := content.Usage{
		Blobs: fromAmount(resp.GetBlobs()), Ingests: fromAmount(resp.GetIngests()), Trash: fromAmount(resp.GetTrash()), Quarantine: fromAmount(resp.GetQuarantine()),
		Free: resp.GetFree(),
	}
	for _, n := range resp.GetNamespaces() {
		u.Namespaces = append(u.Namespaces, content.NamespaceUsage{
			Namespace: n.GetNamespace(), Blobs: n.GetBlobs(), Bytes: n.GetBytes(), Shared: n.GetShared(),
		})
	}
	return u, nil
}

func toAmount(a content.Amount) *contentv1.Amount {
	return &contentv1.Amount{Count: a.Count, Bytes: a.Bytes}
}

func fromAmount(a *contentv1.Amount) content.Amount {
	return content.Amount{Count: a.GetCount(), Bytes: a.GetBytes()}
}
