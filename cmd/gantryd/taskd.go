package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"runtime"

	"github.com/gantryd/gantry/services/activation/activationrpc"
	"github.com/gantryd/gantry/services/container/containerrpc"
	"github.com/gantryd/gantry/services/daemon"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/event/eventrpc"
	"github.com/gantryd/gantry/services/gate/gatenats"
	"github.com/gantryd/gantry/services/gate/gaterpc"
	"github.com/gantryd/gantry/services/namespace/namespacerpc"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/runner"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/services/task/shimrpc"
	"github.com/gantryd/gantry/services/task/shimserve"
	"github.com/gantryd/gantry/services/task/taskrpc"
	"github.com/gantryd/gantry/taskd"
)

type taskdConfig struct {
	daemon.Common
	taskd.Config
}

func (c taskdConfig) Check() error {
	return errors.Join(c.Common.Check(), c.Config.Check())
}

// taskdMain keeps containers and runs tasks, each beside a shim that outlives
// this process.
func taskdMain(ctx context.Context, log *slog.Logger, args []string) error {
	cfg := taskdConfig{daemon.Default(), taskd.Default()}
	if err := daemon.Configure(&cfg, suite.Taskd, args, log); err != nil {
		return err
	}
	executable, err := os.Executable()
	if err != nil {
		return err
	}
	bus, err := eventnats.DialAs(suite.NATSSocket(cfg.Sockets), suite.Taskd)
	if err != nil {
		return err
	}
	defer bus.Close()
	snapshotd, err := rpc.Dial(suite.Socket(cfg.Sockets, suite.Snapshotd))
	if err != nil {
		return err
	}
	defer snapshotd.Close()
	imaged, err := rpc.Dial(suite.Socket(cfg.Sockets, suite.Imaged))
	if err != nil {
		return err
	}
	defer imaged.Close()
	store, err := taskd.Open(cfg.Config, taskd.Needs{
		Shims:       shimrpc.Protocol{},
		Events:      bus,
		Activations: activationrpc.NewClient(snapshotd),
		Namespaces:  namespacerpc.NewClient(imaged),
		Gates:       gatenats.NewAsker(bus.Conn()),
		Told:        toldByShim,
		Executable:  executable,
		Environ:     os.Environ(),
		Log:         log,
	})
	if err != nil {
		return err
	}
	defer store.Close()
	lis, err := daemon.Listen(cfg.Common, suite.Taskd)
	if err != nil {
		return err
	}
	srv := rpc.NewServer(suite.Taskd, log, rpc.WithOperators(cfg.Group))
	containerrpc.Register(srv, store.Containers())
	taskrpc.Register(srv, store.Tasks())
	namespacerpc.RegisterHolder(srv, store)
	gaterpc.Register(srv, store.Lobby())
	// A call that waits for a container may not hold up the end of the daemon.
	defer context.AfterFunc(ctx, store.Interrupt)()
	return daemon.Serve(ctx, daemon.Serving{
		Name:      suite.Taskd,
		Common:    cfg.Common,
		Server:    srv,
		Listeners: []net.Listener{lis},
		Plugins:   taskdPlugins,
		Outbox:    store.Outbox,
		Log:       log,
	}, store.Recover, store.Publish)
}

// toldByShim returns an event as it is when a shim has told it to the bus: the
// bus knows it again.
func toldByShim(ns string, e runner.Event) (event.Event, error) {
	envelope, err := shimserve.Envelope(ns, e)
	if err != nil {
		return event.Event{}, err
	}
	told, err := eventrpc.Forwarded(envelope)
	return told.Stamp(e.Time, suite.Eventbus), err
}

// taskdPlugins are what clients that look for plugins find here.
var taskdPlugins = []suite.Plugin{
	{Type: "io.containerd.runtime.v2", ID: "task", Platforms: []string{"linux/" + runtime.GOARCH}},
	{Type: "io.containerd.service.v1", ID: "containers-service"},
	{Type: "io.containerd.service.v1", ID: "tasks-service"},
	{Type: "io.containerd.grpc.v1", ID: "containers"},
	{Type: "io.containerd.grpc.v1", ID: "tasks"},
}
