package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/snapshot"
)

func snapshotRm(s *shelf) *cobra.Command {
	var tree, force bool
	c := &cobra.Command{
		Use:     "rm KEY…",
		Aliases: []string{"remove"},
		Short:   "Remove snapshots",
		Long: `Rm removes snapshots, with --tree those too that stand on them. One that a
container has is only removed with --force: the container cannot be started
then. Layers of images are made anew when the image is needed.`,
		Example: `  gantryctl snapshot rm web
  gantryctl snapshot rm --tree 0123456789ab`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: s.completeKeys,
		RunE: s.having(func(c *cobra.Command, store snapshot.Store, args []string) error {
			users, err := s.users(c.Context())
			if err != nil {
				return err
			}
			r := remover{ctx: c.Context(), store: store, tree: tree}
			if !force {
				r.users = users
			}
			return each(args, func(arg string) error {
				key, err := find(c.Context(), store, arg)
				if err != nil {
					return err
				}
				return r.remove(key, func(key string) { fmt.Fprintln(c.OutOrStdout(), printable(key)) })
			})
		}),
	}
	c.Flags().BoolVar(&tree, "tree", false, "remove what stands on them too")
	c.Flags().BoolVarP(&force, "force", "f", false, "also those that containers have")
	return c
}

// users returns which container has which snapshot.
func (s *shelf) users(ctx context.Context) (map[string]string, error) {
	containers, err := s.client.Containers.In(s.scope()).List(ctx)
	users := make(map[string]string)
	for _, c := range containers {
		if c.Snapshotter == s.snapshotter && c.SnapshotKey != "" {
			users[c.SnapshotKey] = c.ID
		}
	}
	return users, err
}

// A remover removes snapshots that nobody has.
type remover struct {
	ctx   context.Context
	store snapshot.Store
	users map[string]string // container that has a snapshot
	tree  bool
}

// remove removes a snapshot, and what stands on it first, and says so.
func (r remover) remove(key string, say func(string)) error {
	order, err := r.order(key)
	if err != nil {
		return err
	}
	for _, k := range order {
		if id := r.users[k]; id != "" {
			return fmt.Errorf("snapshot %s is container %s's; gantryctl rm %s removes both, --force the snapshot alone: %w",
				printable(k), id, id, errdefs.ErrFailedPrecondition)
		}
	}
	for _, k := range order {
		if err := r.store.Remove(r.ctx, k); err != nil && (k == key || !errors.Is(err, errdefs.ErrNotFound)) {
			return err
		}
		say(k)
	}
	return nil
}

// order returns what has to be removed, what stands on others first.
func (r remover) order(key string) (order []string, err error) {
	children, err := r.children(key)
	switch {
	case err != nil:
		return nil, err
	case len(children) > 0 && !r.tree:
		return nil, fmt.Errorf("snapshot %s has others on it, %s; --tree removes them too: %w", printable(key), some(children), errdefs.ErrFailedPrecondition)
	}
	for _, child := range children {
		below, err := r.order(child)
		if err != nil {
			return nil, err
		}
		order = append(order, below...)
	}
	return append(order, key), nil
}

func (r remover) children(key string) (names []string, err error) {
	for i, err := range r.store.List(r.ctx, "parent=="+strconv.Quote(key)) {
		if err != nil {
			return nil, err
		}
		names = append(names, i.Name)
	}
	return names, nil
}

// some are a few of many names.
func some(names []string) string {
	var few []string
	for _, n := range names[:min(len(names), candidatesMax)] {
		few = append(few, briefKey(n))
	}
	if len(names) > candidatesMax {
		few = slices.Concat(few, []string{"…"})
	}
	return strings.Join(few, ", ")
}
