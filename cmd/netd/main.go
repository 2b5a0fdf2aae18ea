// Netd connects containers to CNI networks: it answers the gate "network" and
// hears which tasks have ended. It is an executable of its own, so that no
// daemon of the suite has CNI in it.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/netd"
	"github.com/gantryd/gantry/services/daemon"
	"github.com/gantryd/gantry/services/network"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/suite"
)

type netdConfig struct {
	daemon.Common
	netd.Config

	Address string `toml:"address"` // the public door's
}

func (c netdConfig) Check() error {
	err := errors.Join(c.Common.Check(), c.Config.Check())
	if !filepath.IsAbs(c.Address) {
		err = errors.Join(err, fmt.Errorf("address: %q is not an absolute path", c.Address))
	}
	return err
}

func main() { daemon.Main(suite.Netd, os.Args[1:], run) }

func run(ctx context.Context, log *slog.Logger, args []string) error {
	cfg := netdConfig{daemon.Default(), netd.Default(), suite.Address}
	if err := daemon.Configure(&cfg, suite.Netd, args, log); err != nil {
		return err
	}
	c, err := client.Dial(cfg.Address)
	if err != nil {
		return err
	}
	defer c.Close()
	bus, err := client.DialBus(suite.NATSSocket(cfg.Sockets))
	if err != nil {
		return err
	}
	defer bus.Close()
	store, err := netd.Open(cfg.Config, netd.Needs{Containers: c.Containers, Tasks: c.Tasks, Log: log})
	if err != nil {
		return err
	}
	defer store.Close()
	lis, err := daemon.Listen(cfg.Common, suite.Netd)
	if err != nil {
		return err
	}
	return daemon.Serve(ctx, daemon.Serving{
		Name:      suite.Netd,
		Common:    cfg.Common,
		Server:    rpc.NewServer(suite.Netd, log, rpc.WithOperators(cfg.Group)),
		Listeners: []net.Listener{lis},
		Log:       log,
	},
		store.Reconcile,
		store.Resolve,
		func(ctx context.Context) error { return bus.Gate(ctx, network.Gate, store) },
		func(ctx context.Context) error {
			return bus.Subscribe(ctx, client.Subscription{
				Name:     suite.Netd,
				Cursor:   filepath.Join(cfg.Root, "cursor"),
				Subjects: netd.Subjects(),
				Handle:   store.Hear,
				Relist:   store.Relist,
				Retry:    func(err error) { log.Info("the bus is asked again", "err", err) },
			})
		},
	)
}
