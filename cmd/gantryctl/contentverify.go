package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/content"
)

// What a blob can be found to be.
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
with 1 if there are any.

Fields with -o json, for every blob: digest, size (bytes), state (ok or corrupt),
why.`,
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

// verify prints what is found, and fails if a blob is corrupt.
func (n *node) verify(c *cobra.Command, infos []content.Info, p *progress) error {
	var count, corrupt int
	var size int64
	counted := func(yield func(verifyRow, error) bool) {
		for r, err := range n.readAll(c.Context(), infos, p) {
			if err == nil {
				count, size = count+1, size+r.Size
			}
			if r.State == verifyCorrupt {
				corrupt++
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
		err = printCorrupt(c.OutOrStdout(), counted, p)
	}
	p.end()
	switch {
	case err != nil:
		return fmt.Errorf("verify, after %d of %d blobs: %w", count, len(infos), err)
	case corrupt > 0:
		return fmt.Errorf("blobs that are corrupt: %d of %d; gantryctl content rm removes one, so that it can be put or pulled again: %w", corrupt, count, errdefs.ErrDataLoss)
	case n.output != "json" && count > 0:
		fmt.Fprintf(c.OutOrStdout(), "ok: blobs: %d, bytes: %s\n", count, bytesize(size))
	}
	return nil
}

func printCorrupt(out io.Writer, rows iter.Seq2[verifyRow, error], p *progress) error {
	for r, err := range rows {
		if err != nil {
			return err
		}
		if r.State == verifyCorrupt {
			p.end()
			fmt.Fprintf(out, "%s  %s  %s\n", r.Digest, r.State, r.Why)
		}
	}
	return nil
}

// readAll reads blobs as any client does, and yields what it finds of each. One
// that is deleted meanwhile is passed over.
func (n *node) readAll(ctx context.Context, infos []content.Info, p *progress) iter.Seq2[verifyRow, error] {
	var before, total int64
	for _, i := range infos {
		total += i.Size
	}
	return func(yield func(verifyRow, error) bool) {
		for i, info := range infos {
			note := fmt.Sprintf("blob %d of %d", i+1, len(infos))
			_, err := n.in().Get(ctx, info.Digest, io.Discard, client.GetOptions{Progress: func(c client.Progress) {
				p.at(before+c.Done, total, note)
			}})
			before += info.Size
			row := verifyRow{Digest: info.Digest, Size: info.Size, State: verifyOK}
			switch {
			case errors.Is(err, errdefs.ErrNotFound):
				continue
			case errors.Is(err, errdefs.ErrDataLoss):
				row.State, row.Why, err = verifyCorrupt, err.Error(), nil
			}
			if !yield(row, err) || err != nil {
				return
			}
		}
	}
}
