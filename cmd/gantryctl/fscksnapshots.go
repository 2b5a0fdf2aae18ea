package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/suite"
)

func fsckSnapshots(n *node) *cobra.Command {
	var deep, repair, quiet bool
	var rate string
	c := &cobra.Command{
		Use:   "snapshots [SNAPSHOTTER/NAMESPACE/NAME…]",
		Short: "Check the snapshots of every namespace, and what is known of them",
		Long: `Fsck snapshots has snapshotd compare its records with each other and with the
trees, and every committed tree with what it looked like at its commit: names,
types, modes, owners, sizes, links, and the times of files. Nobody has to wait
for it, and it can be interrupted. It prints what it finds, and who counts on it,
and exits with 1 if there is anything.

With --deep, and of snapshots that are named, the layer that a tree was made from
is extracted once more beside it, if its blob is there, and the files are compared
too: what differs is told by its path.

With --repair, records are put right, trees that nobody knows are thrown away,
and the layer of a snapshot whose tree is wrong or gone is extracted again, if it
is known and its blob is there. The tree that was wrong is kept in quarantine,
because containers may run on it. It is removed when it is named, and so is a
tree that nobody has claimed since records were lost.

Fields with -o json: severity, what, id, where, why, done, refs (namespace, kind
and id of what counts on it).`,
		Example: `  gantryctl fsck snapshots
  gantryctl fsck snapshots --deep --rate 50MiB
  gantryctl fsck snapshots --repair overlayfs/default/sha256:e3b0c442
  gantryctl fsck snapshots --repair overlayfs/17`,
		Annotations: endless,
		RunE: func(c *cobra.Command, args []string) error {
			o := fsck.Options{Deep: deep, Repair: repair, Only: args}
			var err error
			if o.Rate, err = parseSize(rate); err != nil {
				return usage(c, fmt.Errorf("--rate: %w", err))
			}
			return n.withDaemon(suite.Snapshotd, func(c *cobra.Command, op *operator) error {
				return n.fsck(c, op.checker, o, n.progress(c, "fsck", quiet))
			})(c, nil)
		},
	}
	f := c.Flags()
	f.BoolVar(&deep, "deep", false, "compare the trees with the layers that they were made from")
	f.StringVar(&rate, "rate", "", "read at most so many `BYTES` a second, as in 50MiB")
	f.BoolVar(&repair, "repair", false, "put right what can be")
	f.BoolVarP(&quiet, "quiet", "q", false, "say nothing of how far it is")
	return c
}
