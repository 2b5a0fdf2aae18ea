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
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/netd"
	"github.com/gantryd/gantry/services/daemon"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/gate/gatenats"
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
	bus, err := eventnats.Dial(suite.NATSSocket(cfg.Sockets))
	if err != nil {
		return err
	}
	defer bus.Close()
	store, err := netd.Open(cfg.Config, netd.Needs{Containers: c.Containers, Tasks: c.Tasks, Log: log})
	if err != nil {
		return err
	}
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
		func(ctx context.Context) error { return follow(ctx, log, c, store) },
		func(ctx context.Context) error { return gatenats.Serve(ctx, bus.Conn(), network.Gate, store) },
	)
}

// follow has the store hear events until ctx ends, and look at everything where
// some were missed.
func follow(ctx context.Context, log *slog.Logger, c *client.Client, store *netd.Store) error {
	var topics []string
	for _, topic := range netd.Topics() {
		topics = append(topics, "topic=="+strconv.Quote(topic))
	}
	for {
		events, err := c.Follow(ctx, event.SubscribeOptions{Filters: topics})
		if err == nil {
			store.Relist() // from here on every change is heard
			for e, missed := range events {
				switch {
				case missed == nil:
					store.Hear(e)
				case errors.Is(missed, errdefs.ErrOutOfRange):
					store.Relist()
				default:
					err = missed
				}
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, errdefs.ErrUnavailable) {
			return fmt.Errorf("events: %w", err)
		}
		log.Warn("the bus is away", "err", strings.TrimSpace(fmt.Sprint(err)))
	}
}
