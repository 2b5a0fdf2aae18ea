package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
)

func stopCommand(n *node) *cobra.Command {
	var patience time.Duration
	c := &cobra.Command{
		Use:   "stop CONTAINER…",
		Short: "End what runs in containers",
		Long: `Stop sends the signal that the image wants to be stopped with, mostly SIGTERM,
and SIGKILL to what has not ended after --time. The container stays; rm removes
it.`,
		Example:           `  gantryctl stop --time 30s web`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: n.completeContainers,
		Annotations:       endless,
		RunE: n.reaching(func(c *cobra.Command, args []string) error {
			return each(args, func(id string) error {
				k, err := n.in().Container(c.Context(), id)
				if err != nil {
					return err
				}
				if _, err := k.Stop(c.Context(), patience); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
					return fmt.Errorf("stop %s: %w", id, err)
				}
				fmt.Fprintln(c.OutOrStdout(), id)
				return nil
			})
		}),
	}
	c.Flags().DurationVar(&patience, "time", 10*time.Second, "how long it has to end by itself")
	return c
}
