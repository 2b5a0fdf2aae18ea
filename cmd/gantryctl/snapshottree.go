package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/snapshot"
)

// A snapshotNode is a snapshot in the tree, with what stands on it.
type snapshotNode struct {
	Key      string          `json:"key"`
	Kind     string          `json:"kind"`
	Size     int64           `json:"size"`  // bytes, by itself
	Total    int64           `json:"total"` // bytes, with what stands on it
	Children []*snapshotNode `json:"children"`
}

func snapshotTree(s *shelf) *cobra.Command {
	return &cobra.Command{
		Use:   "tree [KEY]",
		Short: "Draw which snapshot stands on which",
		Long: `Tree draws which snapshot stands on which, with the size of each by itself, and
in brackets that of what stands on it too. With a key it draws that one and what
stands on it.

Fields with -o json: key, kind, size (bytes), total (bytes, with what stands on
it), children (the same again).`,
		Example: `  gantryctl snapshot tree
  gantryctl snapshot tree 0123456789ab`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: s.completeKey(1),
		RunE: s.having(func(c *cobra.Command, store snapshot.Store, args []string) error {
			all, err := s.measure(c.Context(), store)
			if err != nil {
				return err
			}
			roots, nodes := grow(all)
			if len(args) > 0 {
				key, err := find(c.Context(), store, args[0])
				if err != nil {
					return err
				}
				roots = nil
				if top := nodes[key]; top != nil {
					roots = []*snapshotNode{top}
				}
			}
			out := c.OutOrStdout()
			if s.output == "json" {
				return show(out, s.output, nil, roots, nil)
			}
			for _, r := range roots {
				r.draw(out, "", "")
			}
			return nil
		}),
	}
}

// grow puts snapshots on their parents. One whose parent is not among them, as
// where that went meanwhile, stands on the ground.
func grow(all []snapshot.Measured) (roots []*snapshotNode, nodes map[string]*snapshotNode) {
	nodes = make(map[string]*snapshotNode, len(all))
	for _, m := range all {
		nodes[m.Name] = &snapshotNode{Key: m.Name, Kind: string(m.Kind), Size: m.Size, Children: []*snapshotNode{}}
	}
	for _, m := range all {
		if p := nodes[m.Parent]; p != nil && m.Parent != m.Name {
			p.Children = append(p.Children, nodes[m.Name])
		} else {
			roots = append(roots, nodes[m.Name])
		}
	}
	for _, r := range roots {
		r.sum()
	}
	byKey := func(a, b *snapshotNode) int { return cmp.Compare(a.Key, b.Key) }
	slices.SortFunc(roots, byKey)
	return roots, nodes
}

func (n *snapshotNode) sum() int64 {
	n.Total = n.Size
	for _, c := range n.Children {
		n.Total += c.sum()
	}
	return n.Total
}

// draw draws a node behind what its line and those of its children begin with.
func (n *snapshotNode) draw(w io.Writer, first, rest string) {
	size := bytesize(n.Size)
	if len(n.Children) > 0 {
		size += " [" + bytesize(n.Total) + "]"
	}
	fmt.Fprintf(w, "%s%s  %s  %s\n", first, briefKey(n.Key), n.Kind, size)
	for i, c := range n.Children {
		if i == len(n.Children)-1 {
			c.draw(w, rest+"└─ ", rest+"   ")
		} else {
			c.draw(w, rest+"├─ ", rest+"│  ")
		}
	}
}
