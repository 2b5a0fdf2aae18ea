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
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/snapshot/snapshotrpc"
	"github.com/gantryd/gantry/snapshotd"
)

// TestExternal runs containerd's suite on containerd's own snapshotters, each in
// the place of an external one: served by containerd's service for that, called
// by snapshotd, which is called by containerd's client.
func TestExternal(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	for name, open := range map[string]func(root string) (snapshots.Snapshotter, error){
		"overlayfs": func(root string) (snapshots.Snapshotter, error) { return overlay.NewSnapshotter(root) },
		"native":    native.NewSnapshotter,
	} {
		// The suite knows overlayfs by its name.
		t.Run(name, func(t *testing.T) {
			testsuite.SnapshotterSuite(t, name, func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
				return openExternal(root, "their-"+name, open)
			})
		})
	}
}

// openExternal serves a snapshotter, and a new snapshotd that calls it.
func openExternal(root, name string, open func(string) (snapshots.Snapshotter, error)) (snapshots.Snapshotter, func() error, error) {
	theirs, err := open(filepath.Join(root, "theirs"))
	if err != nil {
		return nil, nil, err
	}
	socket := filepath.Join(root, "t")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	srv := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(srv, snapshotservice.FromSnapshotter(theirs))
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	stop := func() error {
		srv.Stop()
		return errors.Join(<-served, theirs.Close())
	}
	conn, err := rpc.Dial(socket)
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	cfg := snapshotd.Default()
	cfg.Root, cfg.State = filepath.Join(root, "snapshotd"), filepath.Join(root, "state")
	cfg.Proxies = map[string]snapshotd.Proxy{name: {Address: socket}}
	sn, end, err := serveSnapshots(root, name, cfg, snapshotd.Needs{
		Log:     slog.New(slog.DiscardHandler),
		Proxies: map[string]snapshot.Stores{name: snapshotrpc.NewClient(conn)},
	})
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close(), stop())
	}
	return sn, func() error { return errors.Join(end(), conn.Close(), stop()) }, nil
}
