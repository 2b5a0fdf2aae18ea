package main

import (
	"context"
	"errors"
	"log/slog"
	"net"

	"github.com/gantryd/gantry/imaged"
	"github.com/gantryd/gantry/services/daemon"
	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/image/imagerpc"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/lease/leaserpc"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/namespace/namespacerpc"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/suite"
)

type imagedConfig struct {
	daemon.Common
	imaged.Config
}

func (c imagedConfig) Check() error {
	return errors.Join(c.Common.Check(), c.Config.Check())
}

// imagedMain keeps images, leases and namespaces. What belongs to a lease is
// known by contentd and snapshotd, and what is in a namespace by taskd too.
func imagedMain(ctx context.Context, log *slog.Logger, args []string) error {
	cfg := imagedConfig{daemon.Default(), imaged.Default()}
	if err := daemon.Configure(&cfg, suite.Imaged, args, log); err != nil {
		return err
	}
	needs := imaged.Needs{
		Members: map[string]lease.Members{},
		Holders: map[string]namespace.Holder{},
		Log:     log,
	}
	for _, name := range []string{suite.Contentd, suite.Snapshotd, suite.Taskd} {
		conn, err := rpc.Dial(suite.Socket(cfg.Sockets, name))
		if err != nil {
			return err
		}
		defer conn.Close()
		needs.Holders[name] = namespacerpc.NewHolder(conn)
		if name != suite.Taskd {
			needs.Members[name] = leaserpc.NewMembers(conn)
		}
	}
	bus, err := eventnats.DialAs(suite.NATSSocket(cfg.Sockets), suite.Imaged)
	if err != nil {
		return err
	}
	defer bus.Close()
	needs.Events = bus
	store, err := imaged.Open(cfg.Config, needs)
	if err != nil {
		return err
	}
	defer store.Close()
	lis, err := daemon.Listen(cfg.Common, suite.Imaged)
	if err != nil {
		return err
	}
	srv := rpc.NewServer(suite.Imaged, log, rpc.WithOperators(cfg.Group))
	imagerpc.Register(srv, store.Images())
	leaserpc.Register(srv, store.Leases())
	leaserpc.RegisterRegistry(srv, store)
	namespacerpc.Register(srv, store.Namespaces())
	return daemon.Serve(ctx, daemon.Serving{
		Name:      suite.Imaged,
		Common:    cfg.Common,
		Server:    srv,
		Listeners: []net.Listener{lis},
		Plugins:   imagedPlugins,
		Outbox:    store.Outbox,
		Log:       log,
	}, store.Publish, store.Forget, store.Expire)
}

// imagedPlugins are what clients that look for plugins find here.
var imagedPlugins = []suite.Plugin{
	{Type: "io.containerd.lease.v1", ID: "manager"},
	{Type: "io.containerd.service.v1", ID: "images-service"},
	{Type: "io.containerd.service.v1", ID: "namespaces-service"},
	{Type: "io.containerd.grpc.v1", ID: "images"},
	{Type: "io.containerd.grpc.v1", ID: "leases"},
	{Type: "io.containerd.grpc.v1", ID: "namespaces"},
}
