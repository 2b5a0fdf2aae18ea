// Dnsd answers for names of containers on the node's addresses in netd's
// networks. It is an executable of its own, so that no daemon of the suite
// speaks DNS.
package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/dnsd"
	"github.com/gantryd/gantry/services/container/containerrpc"
	"github.com/gantryd/gantry/services/daemon"
	"github.com/gantryd/gantry/services/namespace/namespacerpc"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/services/task/taskrpc"
)

type dnsdConfig struct {
	daemon.Common
	dnsd.Config
}

func (c dnsdConfig) Check() error { return errors.Join(c.Common.Check(), c.Config.Check()) }

func main() { daemon.Main(suite.Dnsd, os.Args[1:], run) }

func run(ctx context.Context, log *slog.Logger, args []string) error {
	cfg := dnsdConfig{daemon.Default(), dnsd.Default()}
	if err := daemon.Configure(&cfg, suite.Dnsd, args, log); err != nil {
		return err
	}
	// Not by the public door, where its role may do nothing.
	taskd, err := rpc.Dial(suite.Socket(cfg.Sockets, suite.Taskd))
	if err != nil {
		return err
	}
	defer taskd.Close()
	imaged, err := rpc.Dial(suite.Socket(cfg.Sockets, suite.Imaged))
	if err != nil {
		return err
	}
	defer imaged.Close()
	bus, err := client.DialBus(suite.NATSSocket(cfg.Sockets))
	if err != nil {
		return err
	}
	defer bus.Close()
	names := dnsd.New(cfg.Config, dnsd.Needs{
		Namespaces: namespacerpc.NewClient(imaged),
		Containers: containerrpc.NewClient(taskd),
		Tasks:      taskrpc.NewClient(taskd),
		Log:        log,
	})
	lis, err := daemon.Listen(cfg.Common, suite.Dnsd)
	if err != nil {
		return err
	}
	return daemon.Serve(ctx, daemon.Serving{
		Name:      suite.Dnsd,
		Common:    cfg.Common,
		Server:    rpc.NewServer(suite.Dnsd, log, rpc.WithOperators(cfg.Group)),
		Listeners: []net.Listener{lis},
		Log:       log,
	},
		names.Serve,
		names.Look,
		func(ctx context.Context) error {
			// Without a cursor: it knows nothing when it starts, and lists.
			return bus.Subscribe(ctx, client.Subscription{
				Name:     suite.Dnsd,
				Subjects: dnsd.Subjects(),
				Handle:   names.Hear,
				Relist:   names.Relist,
				Reached:  names.Reached,
				Retry:    names.Away,
			})
		},
	)
}
