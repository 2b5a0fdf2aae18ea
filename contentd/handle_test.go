package contentd

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/content/contenttest"
	"github.com/gantryd/gantry/services/fdpass"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/rpc/rpctest"
	"github.com/gantryd/gantry/services/suite"
)

// TestStoreThroughFiles runs every promise on writers and readers that are
// files.
func TestStoreThroughFiles(t *testing.T) {
	contenttest.Run(t, func(t *testing.T, leases lease.Registry) contenttest.Subject {
		s := openSubject(t, leases)
		s.Stores = throughFiles(t, s.Stores.(*Store))
		return s
	})
}

func TestFiles(t *testing.T) {
	contenttest.RunFiles(t, func(t *testing.T) content.FileStores { return openStore(t, testConfig(t), nil) })
}

func TestFilesAcrossTheWire(t *testing.T) {
	contenttest.RunFiles(t, func(t *testing.T) content.FileStores {
		s := openStore(t, testConfig(t), nil)
		h := contentrpc.HandlesAt(serveFiles(t, s))
		t.Cleanup(func() { h.Close() })
		return remote{s, h}
	})
}

// remote is a store whose files are at the other end of a socket.
type remote struct {
	content.Stores
	h *contentrpc.Handles
}

func (r remote) Files(scope namespace.Scope) content.Files { return r.h.Files(scope) }

// throughFiles is s across both wires, and as files where that can be.
func throughFiles(t testing.TB, s *Store) content.Stores {
	conn := rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { contentrpc.Register(r, s) })
	h := contentrpc.HandlesAt(serveFiles(t, s))
	t.Cleanup(func() { h.Close() })
	h.WriteMin = 0
	return contentrpc.WithHandles(contentrpc.NewClient(conn), h)
}

// serveFiles serves the files of s and returns the socket.
func serveFiles(t testing.TB, s *Store) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	lis, err := net.ListenUnix(fdpass.Network, &net.UnixAddr{Name: socket, Net: fdpass.Network})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	server := &contentrpc.HandleServer{Stores: s, Guard: rpc.NewGuard(suite.Contentd, log), Log: log}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- server.Serve(ctx, lis) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return socket
}
