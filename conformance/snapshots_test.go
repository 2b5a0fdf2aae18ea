package conformance

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/snapshot/snapshotrpc"
	"github.com/gantryd/gantry/snapshotd"
)

// TestOverlayfs runs containerd's suite for snapshotters on snapshotd, through
// containerd's own client and a real socket.
func TestOverlayfs(t *testing.T) { runSnapshotter(t, snapshotd.Overlayfs) }

func runSnapshotter(t *testing.T, name string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	testsuite.SnapshotterSuite(t, name, func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		return openSnapshots(root, name)
	})
}

// openSnapshots serves a new snapshotd on a socket and returns containerd's
// client of it. Removed snapshots are collected meanwhile.
func openSnapshots(root, name string) (snapshots.Snapshotter, func() error, error) {
	quiet := slog.New(slog.DiscardHandler)
	cfg := snapshotd.Default()
	cfg.Root, cfg.State = filepath.Join(root, "snapshotd"), filepath.Join(root, "state")
	return serveSnapshots(root, name, cfg, snapshotd.Needs{Log: quiet})
}

func serveSnapshots(root, name string, cfg snapshotd.Config, needs snapshotd.Needs) (snapshots.Snapshotter, func() error, error) {
	store, err := snapshotd.Open(cfg, needs)
	if err != nil {
		return nil, nil, err
	}
	collecting, stop := context.WithCancel(context.Background())
	collected := make(chan error, 2)
	go func() { collected <- store.Collect(collecting) }()
	go func() { collected <- store.CollectExternal(collecting) }()

	socket := filepath.Join(root, "s")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		stop()
		return nil, nil, err
	}
	srv := rpc.NewServer("snapshotd", needs.Log)
	snapshotrpc.Register(srv, store)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		stop()
		return nil, nil, err
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), name), func() error {
		stop()
		err := errors.Join(conn.Close(), <-collected, <-collected)
		srv.Stop()
		return errors.Join(err, <-served, store.Close())
	}, nil
}
