package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/backup"
	"github.com/gantryd/gantry/services/backup/backuprpc"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/busrpc"
	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/fsck/fsckrpc"
	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/gate/gaterpc"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/snapshot/snapshotrpc"
	"github.com/gantryd/gantry/services/suite"
)

// An operator is what a daemon answers on its own socket, and not on the public
// one, to operators.
type operator struct {
	meter     content.Meter
	snapshots snapshot.Meter
	checker   fsck.Checker
	keeper    backup.Keeper
	bus       event.Reporter
	lobby     gate.Lobby
	io.Closer
}

// A caller reaches the daemon behind a socket as its operator.
type caller func(ctx context.Context, socket string) (*operator, error)

// dialOperator is the caller of real daemons.
func dialOperator(ctx context.Context, socket string) (*operator, error) {
	if err := knock(ctx, socket); err != nil {
		return nil, err
	}
	conn, err := rpc.Dial(socket)
	if err != nil {
		return nil, err
	}
	return &operator{
		meter: contentrpc.NewMeter(conn), snapshots: snapshotrpc.NewMeter(conn),
		checker: fsckrpc.NewClient(conn), keeper: backuprpc.NewClient(conn),
		bus: busrpc.NewClient(conn), lobby: gaterpc.NewClient(conn), Closer: conn,
	}, nil
}

// withContentd is run of a command that needs what contentd answers to operators.
func (n *node) withContentd(run func(c *cobra.Command, o *operator) error) func(*cobra.Command, []string) error {
	return n.withDaemon(suite.Contentd, run)
}

// withDaemon is run of a command that needs what a daemon answers to operators.
func (n *node) withDaemon(daemon string, run func(c *cobra.Command, o *operator) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, _ []string) error {
		o, err := n.operate(c.Context(), suite.Socket(n.sockets, daemon))
		if err != nil {
			return err
		}
		defer o.Close()
		return run(c, o)
	}
}
