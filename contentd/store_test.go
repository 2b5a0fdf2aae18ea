package contentd

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/content/contenttest"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/lease/leasetest"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

func TestStore(t *testing.T) { contenttest.Run(t, openSubject) }

func TestStoreAcrossTheWire(t *testing.T) {
	contenttest.Run(t, func(t *testing.T, leases lease.Registry) contenttest.Subject {
		return acrossTheWire(t, openSubject(t, leases))
	})
}

func acrossTheWire(t *testing.T, s contenttest.Subject) contenttest.Subject {
	local := s.Stores
	s.Stores = contentrpc.NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { contentrpc.Register(r, local) }))
	return s
}

func TestIsolatedStore(t *testing.T) { contenttest.RunIsolated(t, openIsolated) }

func TestIsolatedStoreAcrossTheWire(t *testing.T) {
	contenttest.RunIsolated(t, func(t *testing.T, leases lease.Registry, namespaces content.Namespaces) contenttest.Subject {
		return acrossTheWire(t, openIsolated(t, leases, namespaces))
	})
}

func TestMembers(t *testing.T) {
	leasetest.RunMembers(t, func(t *testing.T) lease.Members { return openStore(t, testConfig(t), nil) },
		lease.Resource{ID: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", Type: lease.TypeContent},
		lease.Resource{ID: "a ref/of\x00any text", Type: lease.TypeIngests})
}

func openSubject(t *testing.T, leases lease.Registry) contenttest.Subject {
	return subjectOf(t, openStore(t, testConfig(t), leases))
}

func openIsolated(t *testing.T, leases lease.Registry, namespaces content.Namespaces) contenttest.Subject {
	cfg := testConfig(t)
	cfg.Sharing = content.Isolated
	return subjectOf(t, openWith(t, cfg, Needs{Leases: leases, Namespaces: namespaces}))
}

func subjectOf(t *testing.T, s *Store) contenttest.Subject {
	runWork(t, s.Collect)
	return contenttest.Subject{Stores: s, Members: s}
}

func testConfig(t testing.TB) Config {
	cfg := Default()
	cfg.Root = filepath.Join(t.TempDir(), "contentd")
	cfg.FreeMinMiB = freeMinLeast
	return cfg
}

// openStore opens a store that is closed with the test.
func openStore(t testing.TB, cfg Config, leases lease.Registry) *Store {
	t.Helper()
	return openWith(t, cfg, Needs{Leases: leases})
}

func openWith(t testing.TB, cfg Config, needs Needs) *Store {
	t.Helper()
	needs.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := Open(cfg, needs)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	s.sealTime = 100 * time.Millisecond // who keeps a file here does so on purpose
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if len(s.writers) > 0 || len(s.pins) > 0 {
		t.Errorf("%d refs are held and %d blobs pinned", len(s.writers), len(s.pins))
	}
}
