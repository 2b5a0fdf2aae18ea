package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
)

// A snapshotSheet is what snapshot info says.
type snapshotSheet struct {
	snapshotRow
	Snapshotter string        `json:"snapshotter"`
	Size        int64         `json:"size"` // bytes, its parents not counted
	Inodes      int64         `json:"inodes"`
	Unmeasured  string        `json:"unmeasured,omitempty"` // why size and inodes are not known
	Mounts      []mount.Mount `json:"mounts,omitempty"`
}

func snapshotInfo(s *shelf) *cobra.Command {
	return &cobra.Command{
		Use:   "info KEY…",
		Short: "Show what is known of snapshots",
		Long: `Info shows what is known of snapshots: kind, parent, labels, what each occupies by
itself, and how one that is not committed is mounted.

Fields with -o json: key, kind, parent, created_at, updated_at, labels,
snapshotter, size (bytes), inodes, unmeasured (why these are not known), mounts
(type, source, target, options).`,
		Example:           `  gantryctl snapshot info web`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: s.completeKeys,
		RunE: s.having(func(c *cobra.Command, store snapshot.Store, args []string) error {
			var sheets []snapshotSheet
			err := each(args, func(arg string) error {
				sheet, err := s.sheet(c.Context(), store, arg)
				if err == nil {
					sheets = append(sheets, sheet)
				}
				return err
			})
			if s.output == "json" {
				return errors.Join(err, show(c.OutOrStdout(), s.output, nil, sheets, nil))
			}
			now := time.Now()
			for i, sheet := range sheets {
				if i > 0 {
					fmt.Fprintln(c.OutOrStdout())
				}
				sheet.print(c.OutOrStdout(), now)
			}
			return err
		}),
	}
}

// sheet asks for all that is known of a snapshot.
func (s *shelf) sheet(ctx context.Context, store snapshot.Store, arg string) (snapshotSheet, error) {
	sheet := snapshotSheet{Snapshotter: s.snapshotter}
	key, err := find(ctx, store, arg)
	if err != nil {
		return sheet, err
	}
	info, err := store.Stat(ctx, key)
	if err != nil {
		return sheet, err
	}
	sheet.snapshotRow = newSnapshotRow(info)
	if u, err := store.Usage(ctx, key); err == nil {
		sheet.Size, sheet.Inodes = u.Size, u.Inodes
	} else {
		sheet.Unmeasured = err.Error()
	}
	if info.Kind != snapshot.Committed {
		sheet.Mounts, err = store.Mounts(ctx, key)
	}
	return sheet, err
}

func (r snapshotSheet) print(w io.Writer, now time.Time) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(name, value string) { fmt.Fprintf(t, "%s:\t%s\n", name, value) }
	at := func(when time.Time) string {
		return when.Local().Format(time.DateTime) + " (" + since(when, now) + ")"
	}
	line("Key", printable(r.Key))
	line("Snapshotter", r.Snapshotter)
	line("Kind", r.Kind)
	if r.Parent != "" {
		line("Parent", printable(r.Parent))
	}
	line("Created", at(r.CreatedAt))
	line("Updated", at(r.UpdatedAt))
	if r.Unmeasured == "" {
		line("Size", fmt.Sprintf("%s (%d bytes, %d inodes)", bytesize(r.Size), r.Size, r.Inodes))
	} else {
		line("Size", "not known: "+printable(r.Unmeasured))
	}
	name := "Mounts:"
	for _, m := range r.Mounts {
		fmt.Fprintf(t, "%s\t%s\n", name, printable(mountWords(m)))
		name = ""
	}
	name = "Labels:"
	for _, word := range words(r.Labels) {
		fmt.Fprintf(t, "%s\t%s\n", name, word)
		name = ""
	}
	t.Flush()
}

// mountWords is a mount as it is written for mount(8).
func mountWords(m mount.Mount) string {
	all := []string{"-t", m.Type}
	if len(m.Options) > 0 {
		all = append(all, "-o", strings.Join(m.Options, ","))
	}
	all = append(all, m.Source)
	if m.Target != "" {
		all = append(all, "DIR/"+strings.TrimPrefix(m.Target, "/"))
	}
	return strings.Join(all, " ")
}
