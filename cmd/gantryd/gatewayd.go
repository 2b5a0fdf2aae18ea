package main

import (
	"context"
	"errors"
	"io"
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
	behind, err := dialDaemons(cfg)
	if err != nil {
		return err
	}
	defer behind.Close()
	plugins := gatewayPlugins(cfg.Address)
	gateway, err := gatewayd.Open(cfg.Config, gatewayd.Needs{
		Daemons:  behind.describers,
		Plugins:  plugins,
		Version:  daemon.Version(),
		Revision: daemon.Revision(),
		Log:      log,
	})
	if err != nil {
		return err
	}
	listeners, err := gatewayListeners(cfg)
	if err != nil {
		return err
	}
	srv := rpc.NewServer(suite.Gatewayd, log, append(
		rpc.PassThrough(behind.route, gatewayd.Away),
		rpc.WithOperators(cfg.Group))...)
	noderpc.Register(srv, gateway)
	return daemon.Serve(ctx, daemon.Serving{
		Name:      suite.Gatewayd,
		Common:    cfg.Common,
		Server:    srv,
		Listeners: listeners,
		Plugins:   plugins,
		Health:    behind.health,
		Log:       log,
	}, behind.watches...)
}

// behind are the daemons behind the door.
type behind struct {
	health     *health.Server             // says of each service whether its daemon is up
	describers map[string]suite.Describer // by daemon
	backends   map[string]*rpc.Backend    // by service
	watches    []func(context.Context) error
	closers    []io.Closer
}

func dialDaemons(cfg gatewaydConfig) (behind, error) {
	b := behind{
		health:     health.NewServer(),
		describers: map[string]suite.Describer{},
		backends:   map[string]*rpc.Backend{},
	}
	for _, d := range suite.Daemons {
		if d.Name == suite.Gatewayd {
			continue
		}
		socket := suite.Socket(cfg.Sockets, d.Name)
		conn, err := rpc.Dial(socket)
		if err != nil {
			b.Close()
			return behind{}, err
		}
		b.closers = append(b.closers, conn)
		b.describers[d.Name] = suiterpc.NewClient(conn)
		backend, err := rpc.DialBackend(d.Name, socket, cfg.Hold())
		if err != nil {
			b.Close()
			return behind{}, err
		}
		b.closers = append(b.closers, backend)
		for _, service := range d.Public {
			b.backends[service] = backend
		}
		b.watches = append(b.watches, func(ctx context.Context) error {
			return backend.Watch(ctx, func(up bool) { tellHealth(b.health, d.Public, up) })
		})
	}
	return b, nil
}

func (b behind) route(service string) *rpc.Backend { return b.backends[service] }

func (b behind) Close() {
	for _, c := range b.closers {
		c.Close()
	}
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
