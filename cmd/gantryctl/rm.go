package main

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
)

func rmCommand(n *node) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:     "rm CONTAINER…",
		Aliases: []string{"remove"},
		Short:   "Remove containers",
		Long:    `Rm removes containers, and everything that they wrote.`,
		Example: `  gantryctl rm web
  gantryctl rm -f web`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: n.completeContainers,
		RunE: n.reaching(func(c *cobra.Command, args []string) error {
			return each(args, func(id string) error {
				k, err := n.in().Container(c.Context(), id)
				if err != nil {
					return err
				}
				err = k.Delete(c.Context(), force)
				if errors.Is(err, errdefs.ErrFailedPrecondition) && !force {
					return fmt.Errorf("rm %s: %w; stop it first, or kill it with rm -f", id, err)
				}
				if err != nil {
					return fmt.Errorf("rm %s: %w", id, err)
				}
				fmt.Fprintln(c.OutOrStdout(), id)
				return nil
			})
		}),
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "kill what runs in it")
	return c
}
