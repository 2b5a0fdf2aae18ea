package main

import (
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/content"
)

// What a blob can be found to be. What contentd finds may have other names.
const (
	verifyOK      = "ok"
	verifyCorrupt = "corrupt"
)

// A verifyRow is what content verify says of a blob.
type verifyRow struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"` // bytes
	State  string        `json:"state"`
	Why    string        `json:"why,omitempty"` // of one that is not ok
}

func contentVerify(n *node) *cobra.Command {
	var filters []string
	var all, quiet bool
	c := &cobra.Command{
		Use:   "verify DIGEST…",
		Short: "Read blobs and check their bytes",
		Long: `Verify reads blobs, or with --all those of the whole namespace, and checks that
their bytes are what their digests say. It prints those that are not, and exits
with 1 if there are any. It has contentd read its disk where contentd's own
socket is to be reached; otherwise it gets the blobs through the public one.
Gantryctl fsck looks at more, and puts right what it can.

Fields with -o json, for every blob: digest, size (bytes), state (ok, or what is
wrong: corrupt or missing), why.`,
		Example: `  gantryctl content verify e3b0c44298fc
  gantryctl content verify --all -o json`,
		ValidArgsFunction: n.completeBlobs,
		Annotations:       endless,
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case all == (len(args) > 0):
				return usage(c, errors.New("want digests, or --all"))
			case len(filters) > 0 && !all:
				return usage(c, errors.New("--filter is for --all"))
			}
			return n.reaching(func(c *cobra.Command, args []string) error {
				infos, missing := n.verified(c, args, filters)
				p := n.progress(c, "verify", quiet)
				return errors.Join(missing, n.verify(c, infos, p))
			})(c, args)
		},
	}
	c.Flags().StringArrayVar(&filters, "filter", nil, blobFilters)
	c.Flags().BoolVar(&all, "all", false, "verify all blobs of the namespace")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "say nothing of how far it is")
	return c
}

// verified returns the blobs that are to be verified: those of the arguments, or
// those that match.
func (n *node) verified(c *cobra.Command, args, filters []string) (infos []content.Info, err error) {
	if len(args) > 0 {
		return infos, n.eachBlob(c, args, func(d digest.Digest) error {
			info, err := n.blobs().Info(c.Context(), d)
			if err == nil {
				infos = append(infos, info)
			}
			return err
		})
	}
	for info, err := range n.blobs().List(c.Context(), filters...) {
		if err != nil {
			return nil, err
		}
		infos = append(infos, content.Info{Digest: info.Digest, Size: info.Size})
	}
	return infos, nil
}

// verify prints what is found, and fails if a blob is not whole.
func (n *node) verify(c *cobra.Command, infos []content.Info, p *progress) error {
	var count, wrong int
	var size int64
	counted := func(yield func(verifyRow, error) bool) {
		for r, err := range n.checkAll(c.Context(), infos, p) {
			if err == nil {
				count, size = count+1, size+r.Size
			}
			if err == nil && r.State != verifyOK {
				wrong++
			}
			if !yield(r, err) {
				return
			}
		}
	}
	var err error
	if n.output == "json" {
		err = stream(c.OutOrStdout(), n.output, "", counted, nil)
	} else {
		err = printWrong(c.OutOrStdout(), counted, p)
	}
	p.end()
	switch {
	case err != nil:
		return fmt.Errorf("verify, after %d of %d blobs: %w", count, len(infos), err)
	case wrong > 0:
		return fmt.Errorf("blobs that are not whole: %d of %d; gantryctl fsck content says who needs them, and with --repair takes them away, so that they can be put or pulled again: %w", wrong, count, errdefs.ErrDataLoss)
	case n.output != "json" && count > 0:
		fmt.Fprintf(c.OutOrStdout(), "ok: blobs: %d, bytes: %s\n", count, bytesize(size))
	}
	return nil
}

func printWrong(out io.Writer, rows iter.Seq2[verifyRow, error], p *progress) error {
	for r, err := range rows {
		if err != nil {
			return err
		}
		if r.State != verifyOK {
			p.end()
			fmt.Fprintf(out, "%s  %s  %s\n", r.Digest, r.State, r.Why)
		}
	}
	return nil
}
