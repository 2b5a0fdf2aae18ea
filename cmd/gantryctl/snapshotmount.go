package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
)

// A mountRow is what snapshot mount prints.
type mountRow struct {
	Key string `json:"key"` // of the snapshot that is mounted, which may be a view of the one that was named
	Dir string `json:"dir"`
}

func snapshotMount(s *shelf) *cobra.Command {
	return &cobra.Command{
		Use:   "mount KEY DIR",
		Short: "Mount a snapshot here",
		Long: `Mount mounts a snapshot on a directory of this machine, which is the suite's. A
committed one is only to be read: a view of it is made and mounted, and kept from
garbage collection until it is removed. An active one is mounted as it is, to be
written; a container that runs on it should not be surprised.

It prints how to undo that. It takes root, and Linux.

Fields with -o json: key (of what is mounted: the snapshot, or the view of it),
dir.`,
		Example:           `  gantryctl snapshot mount 0123456789ab /mnt`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: s.completeKey(1),
		RunE: s.having(func(c *cobra.Command, store snapshot.Store, args []string) error {
			dir, err := filepath.Abs(args[1])
			if err != nil {
				return err
			}
			key, mounts, viewed, err := mountable(c.Context(), store, args[0])
			if err != nil {
				return err
			}
			if err := mountOn(mounts, dir); err != nil {
				if viewed {
					_ = store.Remove(c.Context(), key) // which says less than err
				}
				return fmt.Errorf("mount %s: %w", printable(args[0]), err)
			}
			out := c.OutOrStdout()
			if s.output == "json" {
				return show(out, s.output, nil, []mountRow{{key, dir}}, nil)
			}
			undo := "umount " + quoted(dir)
			if viewed {
				undo += fmt.Sprintf(" && gantryctl -n %s snapshot --snapshotter %s rm %s", s.namespace, s.snapshotter, quoted(key))
			}
			_, err = fmt.Fprintf(out, "mounted on %s; to undo that:\n  %s\n", printable(dir), undo)
			return err
		}),
	}
}

// quoted is text as a shell takes it for one word.
func quoted(text string) string {
	return "'" + strings.ReplaceAll(printable(text), "'", `'\''`) + "'"
}

// mountable returns what to mount for a snapshot: itself, or a view of it.
func mountable(ctx context.Context, store snapshot.Store, arg string) (key string, mounts []mount.Mount, viewed bool, err error) {
	if key, err = find(ctx, store, arg); err != nil {
		return "", nil, false, err
	}
	i, err := store.Stat(ctx, key)
	if err != nil {
		return "", nil, false, err
	}
	if i.Kind != snapshot.Committed {
		mounts, err = store.Mounts(ctx, key)
		return key, mounts, false, err
	}
	view := fmt.Sprintf("gantryctl-mount-%d", time.Now().UnixNano())
	o := snapshot.Options{Labels: map[string]string{labelRoot: "gantryctl snapshot mount"}}
	mounts, err = store.View(ctx, view, key, o)
	return view, mounts, true, err
}
