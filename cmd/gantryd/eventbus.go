package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"github.com/gantryd/gantry/eventbus"
	"github.com/gantryd/gantry/services/daemon"
	"github.com/gantryd/gantry/services/event/busrpc"
	"github.com/gantryd/gantry/services/event/eventrpc"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/suite"
)

type eventbusConfig struct {
	daemon.Common
	eventbus.Config

	// Address is the public door's. Shims send their events to a socket
	// beside it.
	Address string `toml:"address"`
}

func (c eventbusConfig) Check() error {
	err := errors.Join(c.Common.Check(), c.Config.Check())
	if !filepath.IsAbs(c.Address) {
		err = errors.Join(err, fmt.Errorf("address: %q is not an absolute path", c.Address))
	}
	return err
}

// eventbusMain carries events: to and from containerd's clients by gRPC, from
// shims by ttrpc, and from daemons and to plugins by NATS.
func eventbusMain(ctx context.Context, log *slog.Logger, args []string) error {
	cfg := eventbusConfig{daemon.Default(), eventbus.Default(), suite.Address}
	if err := daemon.Configure(&cfg, suite.Eventbus, args, log); err != nil {
		return err
	}
	bus, err := eventbus.Open(cfg.Config, eventbus.Needs{Log: log})
	if err != nil {
		return err
	}
	defer bus.Close()
	lis, err := daemon.Listen(cfg.Common, suite.Eventbus)
	if err != nil {
		return err
	}
	nats, err := daemon.ListenForAll(cfg.Common, "nats", suite.NATSSocket(cfg.Sockets))
	if err != nil {
		return err
	}
	shims, err := daemon.ListenAt(cfg.Common, "shims", suite.ShimSocket(cfg.Address))
	if err != nil {
		return err
	}
	works := []func(context.Context) error{

		bus.Watch,
		func(ctx context.Context) error { return bus.ServeNATS(ctx, nats) },
		func(ctx context.Context) error { return eventrpc.ServeShims(ctx, shims, bus) },
	}
	if cfg.TCP.Listen != "" {
		works = append(works, func(ctx context.Context) error { return serveTCP(ctx, log, cfg.TCP.Listen, bus) })
	}
	if cfg.Leaf.URL != "" {
		works = append(works, bus.Forward)
	}
	srv := rpc.NewServer(suite.Eventbus, log, rpc.WithOperators(cfg.Group))
	eventrpc.Register(srv, bus)
	busrpc.Register(srv, bus)
	return daemon.Serve(ctx, daemon.Serving{
		Name:      suite.Eventbus,
		Common:    cfg.Common,
		Server:    srv,
		Listeners: []net.Listener{lis},
		Plugins:   eventbusPlugins,
		Log:       log,
	}, works...)
}

// serveTCP serves plugins that connect by TCP. An address that is taken, or not
// there yet, keeps nobody waiting but them.
func serveTCP(ctx context.Context, log *slog.Logger, address string, bus *eventbus.Bus) error {
	var listen net.ListenConfig
	for {
		lis, err := listen.Listen(ctx, "tcp", address)
		if err == nil {
			log.Info("listening for plugins", "address", lis.Addr().String())
			return bus.ServeTCP(ctx, lis)
		}
		log.Error("not listening for plugins yet", "err", err)
		select {
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// eventbusPlugins are what clients that look for plugins find here.
var eventbusPlugins = []suite.Plugin{
	{Type: "io.containerd.event.v1", ID: "exchange"},
	{Type: "io.containerd.grpc.v1", ID: "events"},
}
