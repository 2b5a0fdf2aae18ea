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
	"github.com/gantryd/gantry/services/suite"
)

// A snapshotUsageRow is a row of snapshot usage.
type snapshotUsageRow struct {
	Key        string   `json:"key"`
	Kind       string   `json:"kind"`
	Parent     string   `json:"parent,omitempty"`
	Size       int64    `json:"size"` // bytes, its parents not counted
	Inodes     int64    `json:"inodes"`
	Unmeasured string   `json:"unmeasured,omitempty"`
	Kept       []string `json:"kept"` // by whom; by nobody if it is empty
}

func snapshotUsage(s *shelf) *cobra.Command {
	return &cobra.Command{
		Use:   "usage [KEY…]",
		Short: "Show what snapshots occupy, and why each is kept",
		Long: `Usage shows what each snapshot occupies by itself, its parents not counted, and
who keeps it: snapshots that stand on it, containers, images, leases, or a label.
What nobody keeps goes with the next collection of garbage.

It asks snapshotd for all at once where snapshotd's own socket is to be reached,
and else through the public one, for each, and not for leases.

Fields with -o json: key, kind, parent, size (bytes), inodes, unmeasured (why
these are not known), kept (by whom).`,
		Example: `  gantryctl snapshot usage
  gantryctl snapshot usage web -o json`,
		ValidArgsFunction: s.completeKeys,
		RunE: s.having(func(c *cobra.Command, store snapshot.Store, args []string) error {
			all, err := s.measure(c.Context(), store)
			if err != nil {
				return err
			}
			if len(args) > 0 {
				if all, err = only(c.Context(), store, all, args); err != nil {
					return err
				}
			}
			rows, err := s.usageRows(c.Context(), all)
			if err != nil {
				return err
			}
			out := c.OutOrStdout()
			if err := show(out, s.output, []string{"KEY", "KIND", "SIZE", "INODES", "KEPT BY"}, rows, snapshotUsageRow.cells); err != nil || s.output == "json" {
				return err
			}
			var size int64
			for _, r := range rows {
				size += r.Size
			}
			_, err = fmt.Fprintf(out, "\n%d snapshots, %s\n", len(rows), bytesize(size))
			return err
		}),
	}
}

func (r snapshotUsageRow) cells() []string {
	size, inodes := bytesize(r.Size), strconv.FormatInt(r.Inodes, 10)
	if r.Unmeasured != "" {
		size, inodes = "?", "?"
	}
	kept := "nobody"
	if len(r.Kept) > 0 {
		kept = strings.Join(r.Kept, ", ")
	}
	return []string{briefKey(r.Key), r.Kind, size, inodes, printable(kept)}
}

// measure measures every snapshot, by snapshotd's meter if it is to be reached.
func (s *shelf) measure(ctx context.Context, store snapshot.Store) (all []snapshot.Measured, err error) {
	if o, err := s.operate(ctx, suite.Socket(s.sockets, suite.Snapshotd)); err == nil {
		defer o.Close()
		for m, err := range o.snapshots.Usage(ctx, s.scope(), s.snapshotter) {
			if err != nil {
				return nil, err
			}
			all = append(all, m)
		}
		return all, nil
	}
	children := make(map[string]int)
	for i, err := range store.List(ctx) {
		if err != nil {
			return nil, err
		}
		m := snapshot.Measured{Info: i}
		switch m.Usage, err = store.Usage(ctx, i.Name); {
		case errors.Is(err, errdefs.ErrNotFound):
			continue // removed meanwhile
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			m.Unknown = err.Error()
		}
		children[i.Parent]++
		all = append(all, m)
	}
	for i := range all {
		all[i].Children = children[all[i].Name]
	}
	return all, nil
}

// only returns those that the arguments name.
func only(ctx context.Context, store snapshot.Store, all []snapshot.Measured, args []string) (some []snapshot.Measured, err error) {
	return some, each(args, func(arg string) error {
		key, err := find(ctx, store, arg)
		if err != nil {
			return err
		}
		if at := slices.IndexFunc(all, func(m snapshot.Measured) bool { return m.Name == key }); at >= 0 {
			some = append(some, all[at])
		}
		return nil
	})
}

func (s *shelf) usageRows(ctx context.Context, all []snapshot.Measured) ([]snapshotUsageRow, error) {
	k, err := s.keepers(ctx)
	if err != nil {
		return nil, err
	}
	var rows []snapshotUsageRow
	for _, m := range all {
		rows = append(rows, snapshotUsageRow{
			Key: m.Name, Kind: string(m.Kind), Parent: m.Parent, Size: m.Size, Inodes: m.Inodes, Unmeasured: m.Unknown, Kept: k.of(m),
		})
	}
	return rows, nil
}
