package main

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/content"
)

func contentLabel(n *node) *cobra.Command {
	return &cobra.Command{
		Use:   "label DIGEST KEY=VALUE… KEY-…",
		Short: "Set and remove labels of a blob",
		Long: `Label sets labels of a blob, and removes those whose key ends with a dash. It
prints the labels that the blob has then.

Fields with -o json: digest, size (bytes), created_at, updated_at, labels.`,
		Example: `  gantryctl content label e3b0c44298fc app=web tier-
  gantryctl content label e3b0c44298fc containerd.io/gc.root=keep`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: n.completeBlob,
		RunE: n.reaching(func(c *cobra.Command, args []string) error {
			labels, fields, err := labelArgs(args[1:])
			if err != nil {
				return usage(c, err)
			}
			return n.withBlob(c, args[0], func(d digest.Digest) error {
				info, err := n.blobs().Update(c.Context(), content.Info{Digest: d, Labels: labels}, fields...)
				if err != nil {
					return err
				}
				if n.output == "json" {
					return show(c.OutOrStdout(), n.output, nil, []blobRow{newBlobRow(info)}, nil)
				}
				for _, word := range words(info.Labels) {
					fmt.Fprintln(c.OutOrStdout(), word)
				}
				return nil
			})
		}),
	}
}

// labelArgs reads KEY=VALUE and KEY-, and returns what an update is told.
func labelArgs(args []string) (labels map[string]string, fields []string, err error) {
	labels = make(map[string]string)
	for _, arg := range args {
		key, value, set := strings.Cut(arg, "=")
		remove := false
		if !set {
			key, remove = strings.CutSuffix(arg, "-")
		}
		if key == "" || !set && !remove {
			return nil, nil, fmt.Errorf("%q: want KEY=VALUE or KEY-", arg)
		}
		if _, ok := labels[key]; ok {
			return nil, nil, fmt.Errorf("label %q is given twice", key)
		}
		labels[key] = value
		fields = append(fields, "labels."+key)
	}
	return labels, fields, nil
}

func contentRm(n *node) *cobra.Command {
	return &cobra.Command{
		Use:     "rm DIGEST…",
		Aliases: []string{"remove"},
		Short:   "Remove blobs",
		Long: `Rm removes blobs from the namespace, also those that images need: they have to be
imported or pulled again. Other namespaces keep theirs.`,
		Example:           `  gantryctl content rm sha256:e3b0c44298fc`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: n.completeBlobs,
		RunE: n.reaching(func(c *cobra.Command, args []string) error {
			return n.eachBlob(c, args, func(d digest.Digest) error {
				if err := n.blobs().Delete(c.Context(), d); err != nil {
					return err
				}
				fmt.Fprintln(c.OutOrStdout(), d)
				return nil
			})
		}),
	}
}
