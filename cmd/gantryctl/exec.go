package main

import (
	"context"

	"github.com/spf13/cobra"
)

func execCommand(n *node) *cobra.Command {
	var f programFlags
	c := &cobra.Command{
		Use:   "exec CONTAINER COMMAND…",
		Short: "Run another command in a container",
		Long: `Exec runs a command beside what runs in a container already, with the same
environment, user and limits. It exits with the command's code, or with 125 if it
could not be started.`,
		Example: `  gantryctl exec web /bin/ls /
  gantryctl exec -t web /bin/sh`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: n.completeContainer,
		Annotations:       starting,
		RunE: n.reaching(func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			tty, err := f.streams(c)
			if err != nil {
				return usage(c, err)
			}
			defer tty.restore()
			k, err := n.in().Container(ctx, args[0])
			if err != nil {
				return startError(ctx, args[0], err)
			}
			p, err := k.Exec(ctx, f.program(n, args[1:]), tty.Streams)
			if err != nil {
				return startError(ctx, args[0], err)
			}
			status, err := tty.attend(n, p)
			if err != nil {
				return startError(ctx, args[0], err)
			}
			if err := p.Delete(context.WithoutCancel(ctx)); err != nil {
				return startError(ctx, args[0], err)
			}
			return exitWith(status)
		}),
	}
	f.add(c)
	return c
}
