package main

import (
	"context"
	"errors"
	"log/slog"
	"net"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/activation/activationrpc"
	"github.com/gantryd/gantry/services/backup/backuprpc"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/daemon"
	"github.com/gantryd/gantry/services/diff/diffrpc"
	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/fsck/fsckrpc"
	"github.com/gantryd/gantry/services/gc/gcrpc"
	"github.com/gantryd/gantry/services/lease/leaserpc"
	"github.com/gantryd/gantry/services/namespace/namespacerpc"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/snapshot/snapshotrpc"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/services/unpack/unpackrpc"
	"github.com/gantryd/gantry/snapshotd"
)

type snapshotdConfig struct {
	daemon.Common
	snapshotd.Config
}

func (c snapshotdConfig) Check() error {
	return errors.Join(c.Common.Check(), c.Config.Check())
}

// snapshotdMain keeps snapshots and extracts layers, whose bytes contentd has.
// Which leases exist is known by imaged.
func snapshotdMain(ctx context.Context, log *slog.Logger, args []string) error {
	cfg := snapshotdConfig{daemon.Default(), snapshotd.Default()}
	if err := daemon.Configure(&cfg, suite.Snapshotd, args, log); err != nil {
		return err
	}
	contentd, err := rpc.Dial(suite.Socket(cfg.Sockets, suite.Contentd))
	if err != nil {
		return err
	}
	defer contentd.Close()
	imaged, err := rpc.Dial(suite.Socket(cfg.Sockets, suite.Imaged))
	if err != nil {
		return err
	}
	defer imaged.Close()
	bus, err := eventnats.DialAs(suite.NATSSocket(cfg.Sockets), suite.Snapshotd)
	if err != nil {
		return err
	}
	defer bus.Close()
	files := contentrpc.HandlesAt(suite.BlobsSocket(cfg.Sockets))
	defer files.Close()
	proxies, hangUp, err := dialProxies(cfg.Proxies)
	if err != nil {
		return err
	}
	defer hangUp()
	store, err := snapshotd.Open(cfg.Config, snapshotd.Needs{
		Leases:  leaserpc.NewRegistry(imaged),
		Events:  bus,
		Content: contentrpc.WithHandles(contentrpc.NewClient(contentd), files),
		Proxies: proxies,
		Log:     log,
	})
	if err != nil {
		return err
	}
	defer store.Close()
	lis, err := daemon.Listen(cfg.Common, suite.Snapshotd)
	if err != nil {
		return err
	}
	srv := rpc.NewServer(suite.Snapshotd, log, rpc.WithOperators(cfg.Group))
	snapshotrpc.Register(srv, store)
	snapshotrpc.RegisterMeter(srv, store)
	diffrpc.Register(srv, store.Layers())
	activationrpc.Register(srv, store.Activations())
	unpackrpc.Register(srv, store.Unpacking())
	leaserpc.RegisterMembers(srv, store)
	gcrpc.Register(srv, store)
	backuprpc.Register(srv, store)
	fsckrpc.Register(srv, store)
	namespacerpc.RegisterHolder(srv, store)
	return daemon.Serve(ctx, daemon.Serving{
		Name:      suite.Snapshotd,
		Common:    cfg.Common,
		Server:    srv,
		Listeners: []net.Listener{lis},
		Plugins:   store.Plugins(),
		Outbox:    store.Outbox,
		Log:       log,
	}, store.Publish, store.KeepBackups, store.Collect, store.CollectExternal, store.Unmount)
}

// dialProxies returns the snapshotters that are other processes, which need not
// be there.
func dialProxies(proxies map[string]snapshotd.Proxy) (map[string]snapshot.Stores, func(), error) {
	all := make(map[string]snapshot.Stores)
	var conns []*grpc.ClientConn
	hangUp := func() {
		for _, c := range conns {
			c.Close()
		}
	}
	for name, p := range proxies {
		conn, err := rpc.Dial(p.Address)
		if err != nil {
			hangUp()
			return nil, nil, err
		}
		conns = append(conns, conn)
		all[name] = snapshotrpc.NewClient(conn)
	}
	return all, hangUp, nil
}
