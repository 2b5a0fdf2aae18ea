package contentd

import (
	"log/slog"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/content/contenttest"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/lease/leasetest"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

func TestStore(t *testing.T) { contenttest.Run(t, openSubject) }

func TestStoreAcrossTheWire(t *testing.T) {
	contenttest.Run(t, func(t *testing.T, leases lease.Registry) contenttest.Subject {
		s := openSubject(t, leases)
		s.Stores = contentrpc.NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) {
			contentrpc.Register(r, s.Stores)
		}))
		return s
	})
}

func TestMembers(t *testing.T) {
	leasetest.RunMembers(t, func(t *testing.T) lease.Members { return openStore(t, testConfig(t), nil) },
		lease.Resource{ID: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", Type: lease.TypeContent},
		lease.Resource{ID: "a ref/of\x00any text", Type: lease.TypeIngests})
}

func openSubject(t *testing.T, leases lease.Registry) contenttest.Subject {
	s := openStore(t, testConfig(t), leases)
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
	s, err := Open(cfg, Needs{Leases: leases, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
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
