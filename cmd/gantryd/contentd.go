package main

import (
	"context"
	"errors"
	"log/slog"
	"net"

	"github.com/gantryd/gantry/contentd"
	"github.com/gantryd/gantry/services/backup/backuprpc"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/daemon"
	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/fsck/fsckrpc"
	"github.com/gantryd/gantry/services/gc/gcrpc"
	"github.com/gantryd/gantry/services/lease/leaserpc"
	"github.com/gantryd/gantry/services/namespace/namespacerpc"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/suite"
)

type contentdConfig struct {
	daemon.Common
	contentd.Config
}

func (c contentdConfig) Check() error {
	return errors.Join(c.Common.Check(), c.Config.Check())
}

// contentdMain keeps blobs. Which leases exist, and which namespaces share, is
// known by imaged.
func contentdMain(ctx context.Context, log *slog.Logger, args []string) error {
	cfg := contentdConfig{daemon.Default(), contentd.Default()}
	if err := daemon.Configure(&cfg, suite.Contentd, args, log); err != nil {
		return err
	}
	imaged, err := rpc.Dial(suite.Socket(cfg.Sockets, suite.Imaged))
	if err != nil {
		return err
	}
	defer imaged.Close()
	bus, err := eventnats.DialAs(suite.NATSSocket(cfg.Sockets), suite.Contentd)
	if err != nil {
		return err
	}
	defer bus.Close()
	store, err := contentd.Open(cfg.Config, contentd.Needs{
		Leases:     leaserpc.NewRegistry(imaged),
		Namespaces: namespacerpc.NewClient(imaged),
		Events:     bus,
		Log:        log,
	})
	if err != nil {
		return err
	}
	defer store.Close()
	lis, err := daemon.Listen(cfg.Common, suite.Contentd)
	if err != nil {
		return err
	}
	blobs := suite.BlobsSocket(cfg.Sockets)
	files, err := daemon.ListenPackets(cfg.Common, suite.Contentd+".blobs", blobs)
	if err != nil {
		lis.Close()
		return err
	}
	handles := &contentrpc.HandleServer{
		Stores: store,
		Guard:  rpc.NewGuard(suite.Contentd, log, rpc.WithOperators(cfg.Group)),
		Store:  store.Name(),
		Log:    log,
	}
	srv := rpc.NewServer(suite.Contentd, log, rpc.WithOperators(cfg.Group))
	contentrpc.Register(srv, store)
	contentrpc.RegisterMeter(srv, store)
	fsckrpc.Register(srv, store)
	backuprpc.Register(srv, store)
	leaserpc.RegisterMembers(srv, store)
	gcrpc.Register(srv, store)
	namespacerpc.RegisterHolder(srv, store)
	return daemon.Serve(ctx, daemon.Serving{
		Name:      suite.Contentd,
		Common:    cfg.Common,
		Server:    srv,
		Listeners: []net.Listener{lis},
		Plugins:   contentdPlugins(blobs, store.Name()),
		Outbox:    store.Outbox,
		Log:       log,
	}, store.Publish, store.KeepBackups, store.Collect, func(ctx context.Context) error { return handles.Serve(ctx, files) })
}

// contentdPlugins are what clients that look for plugins find here.
func contentdPlugins(socket, store string) []suite.Plugin {
	return []suite.Plugin{
		{Type: suite.ContentPlugin, ID: suite.ContentPluginID, Exports: map[string]string{
			suite.ExportBlobsSocket: socket,
			suite.ExportBlobsStore:  store,
		}},
		{Type: "io.containerd.service.v1", ID: "content-service"},
		{Type: "io.containerd.grpc.v1", ID: "content"},
	}
}
