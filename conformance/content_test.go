package conformance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"

	leaseapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/content/testsuite"
	"github.com/containerd/containerd/v2/core/leases"
	leaseproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/gantryd/gantry/contentd"
	gantrycontent "github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/lease/leaserpc"
	"github.com/gantryd/gantry/services/lease/leasetest"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/namespace/namespacetest"
	"github.com/gantryd/gantry/services/rpc"
)

// TestContent runs containerd's suite for content stores on contentd, through
// containerd's own client and a real socket.
func TestContent(t *testing.T) {
	testsuite.ContentSuite(t, "content", openContent)
}

// TestContentShared runs its suite for what namespaces share.
func TestContentShared(t *testing.T) {
	testsuite.ContentCrossNSSharedSuite(t, "shared", openContent)
}

// TestContentIsolated runs its suites for what they do not share.
func TestContentIsolated(t *testing.T) {
	testsuite.ContentSuite(t, "content", openIsolated)
	testsuite.ContentCrossNSIsolatedSuite(t, "isolated", openIsolated)
	testsuite.ContentSharedNSIsolatedSuite(t, "shareable", openIsolated)
}

func openContent(ctx context.Context, root string) (context.Context, content.Store, func() error, error) {
	return open(ctx, root, gantrycontent.Shared)
}

func openIsolated(ctx context.Context, root string) (context.Context, content.Store, func() error, error) {
	return open(ctx, root, gantrycontent.Isolated)
}

// open serves a new contentd on a socket and returns containerd's client of it.
// Each context that the suite derives is a namespace of its own with a lease, as
// containerd's own client tests have it.
func open(ctx context.Context, root string, sharing gantrycontent.Sharing) (context.Context, content.Store, func() error, error) {
	quiet := slog.New(slog.DiscardHandler)
	cfg := contentd.Default()
	cfg.Root, cfg.Sharing = filepath.Join(root, "contentd"), sharing
	known, labels := &leasetest.Memory{}, namespacetest.NewMemory()
	store, err := contentd.Open(cfg, contentd.Needs{Leases: known, Namespaces: labels, Log: quiet})
	if err != nil {
		return ctx, nil, nil, err
	}
	collecting, stop := context.WithCancel(context.Background())
	collected := make(chan error, 1)
	go func() { collected <- store.Collect(collecting) }()

	socket := filepath.Join(root, "s")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		stop()
		return ctx, nil, nil, err
	}
	srv := rpc.NewServer("contentd", quiet)
	contentrpc.Register(srv, store)
	leaserpc.Register(srv, known)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		stop()
		return ctx, nil, nil, err
	}

	name := testsuite.Name(ctx)
	manager := leaseproxy.NewLeaseManager(leaseapi.NewLeasesClient(conn))
	var count atomic.Uint64
	ctx = testsuite.SetContextWrapper(ctx, func(ctx context.Context, shareable bool) (context.Context, func(context.Context) error, error) {
		id := fmt.Sprintf("%s-%d", name, count.Add(1))
		if shareable {
			info := namespace.Info{Name: id, Labels: map[string]string{namespace.LabelShareable: "true"}}
			if _, err := labels.Create(ctx, info); err != nil {
				return ctx, nil, err
			}
		}
		ctx = namespaces.WithNamespace(ctx, id)
		l, err := manager.Create(ctx, leases.WithID(id))
		if err != nil {
			return ctx, nil, err
		}
		return leases.WithLease(ctx, l.ID), func(ctx context.Context) error { return manager.Delete(ctx, l) }, nil
	})
	return ctx, proxy.NewContentStore(conn), func() error {
		stop()
		err := errors.Join(conn.Close(), notCanceled(<-collected))
		srv.Stop()
		return errors.Join(err, <-served, store.Close())
	}, nil
}

func notCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
