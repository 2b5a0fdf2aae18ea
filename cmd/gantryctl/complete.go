package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/namespace"
)

// completeTime is how long a shell waits for the names it offers.
const completeTime = time.Second

// completeImages offers the images that there are.
func (n *node) completeImages(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return n.complete(c, func(ctx context.Context) (names []string, err error) {
		images, err := n.client.Images.In(namespace.Scope{Name: n.namespace}).List(ctx)
		for _, i := range images {
			names = append(names, i.Name)
		}
		return names, err
	})
}

// completeContainers offers the containers that there are.
func (n *node) completeContainers(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return n.complete(c, func(ctx context.Context) (names []string, err error) {
		containers, err := n.client.Containers.In(namespace.Scope{Name: n.namespace}).List(ctx)
		for _, k := range containers {
			names = append(names, k.ID)
		}
		return names, err
	})
}

// completeImage offers images for the first argument and nothing for others.
func (n *node) completeImage(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return n.completeImages(c, args, word)
}

// completeContainer offers containers for the first argument and nothing for
// others.
func (n *node) completeContainer(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return n.completeContainers(c, args, word)
}

func (n *node) complete(c *cobra.Command, list func(context.Context) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), completeTime)
	defer cancel()
	c.SetContext(ctx)
	if err := errors.Join(n.prepare(c), n.reach(ctx)); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names, err := list(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
