package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strconv"

	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/gantryd/gantry/gatewayd"
	"github.com/gantryd/gantry/services/daemon"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/services/suite/noderpc"
	"github.com/gantryd/gantry/services/suite/suiterpc"
)

type gatewaydConfig struct {
	daemon.Common
	gatewayd.Config
}

func (c gatewaydConfig) Check() error {
	return errors.Join(c.Common.Check(), c.Config.Check())
}

// gatewaydMain opens the public door: what the gateway answers itself, and the
// rest passed on to the daemon that owns it.
func gatewaydMain(ctx context.Context, log *slog.Logger, args []string) error {
	cfg := gatewaydConfig{daemon.Default(), gatewayd.Default()}
	if err := daemon.Configure(&cfg, suite.Gatewayd, args, log); err != nil {
		return err
	}
	plugins := gatewayPlugins(cfg.Address)
	needs := gatewayd.Needs{
		Daemons:  map[string]suite.Describer{},
		Plugins:  plugins,
		Version:  daemon.Version(),
		Revision: daemon.Revision(),
		Log:      log,
	}
	hs := health.NewServer()
	backends := map[string]*rpc.Backend{} // by service
	var works []func(context.Context) error
	for _, d := range suite.Daemons {
		if d.Name == suite.Gatewayd {
			continue
		}
		socket := suite.Socket(cfg.Sockets, d.Name)
		conn, err := rpc.Dial(socket)
		if err != nil {
			return err
		}
		defer conn.Close()
		needs.Daemons[d.Name] = suiterpc.NewClient(conn)
		b, err := rpc.DialBackend(d.Name, socket, cfg.Hold())
		if err != nil {
			return err
		}
		defer b.Close()
		for _, service := range d.Public {
			backends[service] = b
		}
		works = append(works, func(ctx context.Context) error {
			return b.Watch(ctx, func(up bool) { tellHealth(hs, d.Public, up) })
		})
	}
	gateway, err := gatewayd.Open(cfg.Config, needs)
	if err != nil {
		return err
	}
	listeners, err := gatewayListeners(cfg)
	if err != nil {
		return err
	}
	srv := rpc.NewServer(suite.Gatewayd, log, append(
		rpc.PassThrough(func(service string) *rpc.Backend { return backends[service] }, gatewayd.Away),
		rpc.WithOperators(cfg.Group))...)
	noderpc.Register(srv, gateway)
	return daemon.Serve(ctx, daemon.Serving{
		Name:      suite.Gatewayd,
		Common:    cfg.Common,
		Server:    srv,
		Listeners: listeners,
		Plugins:   plugins,
		Health:    hs,
		Log:       log,
	}, works...)
}

// gatewayListeners opens the door's sockets, and the one that every daemon has.
func gatewayListeners(cfg gatewaydConfig) ([]net.Listener, error) {
	own, err := daemon.Listen(cfg.Common, suite.Gatewayd)
	if err != nil {
		return nil, err
	}
	listeners := []net.Listener{own}
	for i, path := range cfg.Addresses() {
		name := "public"
		if i > 0 {
			name += strconv.Itoa(i + 1)
		}
		lis, err := daemon.ListenAt(cfg.Common, name, path)
		if err != nil {
			for _, open := range listeners {
				open.Close()
			}
			return nil, err
		}
		listeners = append(listeners, lis)
	}
	return listeners, nil
}

// tellHealth says of each service that a daemon answers whether it does.
func tellHealth(hs *health.Server, services []string, up bool) {
	status := healthpb.HealthCheckResponse_NOT_SERVING
	if up {
		status = healthpb.HealthCheckResponse_SERVING
	}
	for _, service := range services {
		hs.SetServingStatus(service, status)
	}
}

// gatewayPlugins are what clients that look for plugins find here.
func gatewayPlugins(address string) []suite.Plugin {
	return []suite.Plugin{
		{Type: "io.containerd.server.v1", ID: "grpc", Exports: map[string]string{"address": address}},
		{Type: "io.containerd.service.v1", ID: "introspection-service"},
		{Type: "io.containerd.grpc.v1", ID: "introspection"},
		{Type: "io.containerd.grpc.v1", ID: "version"},
		{Type: "io.containerd.grpc.v1", ID: "healthcheck"},
	}
}
