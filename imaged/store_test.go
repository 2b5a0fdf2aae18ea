package imaged

import (
	"context"
	"log/slog"
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/image/imagerpc"
	"github.com/gantryd/gantry/services/image/imagetest"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/lease/leaserpc"
	"github.com/gantryd/gantry/services/lease/leasetest"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/namespace/namespacerpc"
	"github.com/gantryd/gantry/services/namespace/namespacetest"
	"github.com/gantryd/gantry/services/rpc/rpctest"
	"github.com/gantryd/gantry/services/suite"
)

func TestImages(t *testing.T) {
	imagetest.Run(t, func(t *testing.T) imagetest.Subject {
		s := open(t, t.TempDir(), Needs{})
		return imagetest.Subject{Images: s.Images(), Leases: s.Leases()}
	})
}

func TestLeases(t *testing.T) {
	leasetest.Run(t, func(t *testing.T) leasetest.Subject {
		s := open(t, t.TempDir(), Needs{})
		return leasetest.Subject{Leases: s.Leases(), Registry: s}
	})
}

func TestMembers(t *testing.T) {
	leasetest.RunMembers(t, func(t *testing.T) lease.Members {
		return open(t, t.TempDir(), Needs{}).members[suite.Imaged]
	}, lease.Resource{ID: "a", Type: lease.TypeImages}, lease.Resource{ID: "a\x00b", Type: lease.TypeImages}, lease.Resource{ID: "ß", Type: lease.TypeImages})
}

func TestNamespaces(t *testing.T) {
	namespacetest.Run(t, func(t *testing.T, h namespace.Holder) namespace.Store {
		return open(t, t.TempDir(), Needs{Holders: map[string]namespace.Holder{suite.Contentd: h}}).Namespaces()
	})
}

func TestImagesAcrossTheWire(t *testing.T) {
	imagetest.Run(t, func(t *testing.T) imagetest.Subject {
		conn := serve(t, open(t, t.TempDir(), Needs{}))
		return imagetest.Subject{Images: imagerpc.NewClient(conn), Leases: leaserpc.NewClient(conn)}
	})
}

// TestLeasesAcrossTheWire has both hops: from the client, and to the owners.
func TestLeasesAcrossTheWire(t *testing.T) {
	leasetest.Run(t, func(t *testing.T) leasetest.Subject {
		needs := Needs{Members: map[string]lease.Members{}}
		for _, daemon := range []string{suite.Contentd, suite.Snapshotd} {
			needs.Members[daemon] = leaserpc.NewMembers(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) {
				leaserpc.RegisterMembers(r, &leasetest.Members{})
			}))
		}
		conn := serve(t, open(t, t.TempDir(), needs))
		return leasetest.Subject{Leases: leaserpc.NewClient(conn), Registry: leaserpc.NewRegistry(conn)}
	})
}

func TestNamespacesAcrossTheWire(t *testing.T) {
	namespacetest.Run(t, func(t *testing.T, h namespace.Holder) namespace.Store {
		holder := namespacerpc.NewHolder(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { namespacerpc.RegisterHolder(r, h) }))
		s := open(t, t.TempDir(), Needs{Holders: map[string]namespace.Holder{suite.Contentd: holder}})
		return namespacerpc.NewClient(serve(t, s))
	})
}

// open opens a store whose owners are in memory unless needs has others. It
// ends with the test.
func open(t *testing.T, dir string, needs Needs) *Store {
	t.Helper()
	if needs.Members == nil {
		needs.Members = map[string]lease.Members{suite.Contentd: &leasetest.Members{}, suite.Snapshotd: &leasetest.Members{}}
	}
	if needs.Events == nil {
		needs.Events = nowhere{}
	}
	needs.Log = slogTo(t)
	s, err := Open(Config{Root: dir}, needs)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func slogTo(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func serve(t *testing.T, s *Store) *grpc.ClientConn {
	return rpctest.Pipe(t, func(r grpc.ServiceRegistrar) {
		imagerpc.Register(r, s.Images())
		leaserpc.Register(r, s.Leases())
		leaserpc.RegisterRegistry(r, s)
		namespacerpc.Register(r, s.Namespaces())
	})
}

// nowhere is a bus that forgets.
type nowhere struct{}

func (nowhere) Publish(context.Context, event.Event) error { return nil }
