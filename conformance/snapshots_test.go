package conformance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/snapshot/snapshotrpc"
	"github.com/gantryd/gantry/snapshotd"
)

// TestOverlayfs runs containerd's suite for snapshotters on snapshotd, through
// containerd's own client and a real socket.
func TestOverlayfs(t *testing.T) { runSnapshotter(t, snapshotd.Overlayfs, nil) }

// TestErofs is TestOverlayfs for layers that are images.
func TestErofs(t *testing.T) { runSnapshotter(t, "erofs", nil) }

// TestNative is TestOverlayfs for copies.
func TestNative(t *testing.T) { runSnapshotter(t, "native", nil) }

// TestBtrfs is TestOverlayfs for subvolumes, on a btrfs of its own for each test.
func TestBtrfs(t *testing.T) { runSnapshotter(t, "btrfs", mountBtrfs) }

// runSnapshotter runs the suite; place, if there is one, makes the directory of
// the snapshotter out of files in scratch.
func runSnapshotter(t *testing.T, name string, place func(dir, scratch string) (remove func() error, err error)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	if place == nil {
		place = func(_, _ string) (func() error, error) { return func() error { return nil }, nil }
	}
	testsuite.SnapshotterSuite(t, name, func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		remove, err := place(filepath.Join(root, "snapshotd", name), root)
		if err != nil {
			return nil, nil, err
		}
		sn, closeAll, err := openSnapshots(root, name)
		if err != nil {
			return nil, nil, errors.Join(err, remove())
		}
		return sn, sync.OnceValue(func() error { return errors.Join(closeAll(), remove()) }), nil
	})
}

// mountBtrfs mounts an empty btrfs, kept in a file, at a directory.
func mountBtrfs(dir, scratch string) (remove func() error, err error) {
	disk := filepath.Join(scratch, "disk")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 512<<20)); err != nil {
		return nil, err
	}
	for _, c := range [][]string{{"mkfs.btrfs", "-q", disk}, {"mount", "-o", "loop", disk, dir}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%q: %w: %s", c, err, out)
		}
	}
	return func() error { return unix.Unmount(dir, 0) }, nil
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
