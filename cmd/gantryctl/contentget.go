package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/content"
)

// A getRow is what content get prints where the blob goes to a file.
type getRow struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"` // bytes
	File   string        `json:"file"`
}

func contentGet(n *node) *cobra.Command {
	var file string
	var quiet bool
	c := &cobra.Command{
		Use:   "get DIGEST",
		Short: "Print a blob, or write it to a file",
		Long: `Get prints the bytes of a blob, or writes them to a file with -f, and makes sure
that they are what the digest says: if not, it exits with 1. Then the file is as
it was before, but what is printed is printed; a pipeline has to heed the code.

To a terminal it prints short text only; -f - prints anything.

Fields with -o json, which is for -f FILE: digest, size (bytes), file.`,
		Example: `  gantryctl content get e3b0c44298fc
  gantryctl content get -f layer.tar.gz sha256:e3b0c44298fc
  gantryctl content get e3b0c44298fc | jq .layers`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: n.completeBlob,
		Annotations:       endless,
		RunE: func(c *cobra.Command, args []string) error {
			printed := file == "" || file == "-"
			if printed && n.output == "json" {
				return usage(c, errors.New("-o json is for a blob that goes to a file: give -f FILE"))
			}
			get := n.getFile(file, quiet)
			switch {
			case file == "" && terminal(c.OutOrStdout()) != nil:
				get = n.getText
			case printed:
				get = n.getBytes(quiet)
			}
			return n.reaching(func(c *cobra.Command, args []string) error {
				return n.withBlob(c, args[0], func(d digest.Digest) error {
					err := get(c, d)
					if errors.Is(err, errdefs.ErrDataLoss) {
						return fmt.Errorf("%w; gantryctl fsck content --repair takes it away, so that it can be put or pulled again", err)
					}
					return err
				})
			})(c, args)
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "write it to `FILE`, which appears when it is whole; - is standard output")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "say nothing of how far it is")
	return c
}

// getFile returns a get to a file.
func (n *node) getFile(file string, quiet bool) func(*cobra.Command, digest.Digest) error {
	return func(c *cobra.Command, d digest.Digest) error {
		p := n.progress(c, "get "+brief(d), quiet)
		size, err := n.in().GetFile(c.Context(), d, file, client.GetOptions{Progress: p.follow(0)})
		p.end()
		if err != nil || n.output != "json" {
			return err
		}
		return show(c.OutOrStdout(), n.output, nil, []getRow{{d, size, file}}, nil)
	}
}

// getBytes returns a get to standard output.
func (n *node) getBytes(quiet bool) func(*cobra.Command, digest.Digest) error {
	return func(c *cobra.Command, d digest.Digest) error {
		// Nobody wants the line between the bytes.
		p := n.progress(c, "get "+brief(d), quiet || terminal(c.OutOrStdout()) != nil)
		_, err := n.in().Get(c.Context(), d, c.OutOrStdout(), client.GetOptions{Progress: p.follow(0)})
		p.end()
		return err
	}
}

// textMax is how large a blob is at most that is printed on a terminal.
const textMax = 1 << 20

func (n *node) getText(c *cobra.Command, d digest.Digest) error {
	return printText(c.Context(), c.OutOrStdout(), n.blobs(), d)
}

// printText prints a blob that can do a terminal no harm.
func printText(ctx context.Context, out io.Writer, blobs content.Blobs, d digest.Digest) error {
	const instead = "-f FILE writes it to a file, and -f - to the terminal all the same"
	b, err := content.ReadAll(ctx, blobs, d, textMax)
	switch {
	case errors.Is(err, errdefs.ErrOutOfRange):
		return fmt.Errorf("the blob is too large for a terminal; %s: %w", instead, err)
	case err != nil:
		return err
	case !isText(b):
		return fmt.Errorf("the blob is no text, and standard output is a terminal; %s: %w", instead, errdefs.ErrFailedPrecondition)
	}
	_, err = out.Write(b)
	if err == nil && len(b) > 0 && b[len(b)-1] != '\n' {
		_, err = fmt.Fprintln(out)
	}
	return err
}

// isText says whether b is text that only moves a terminal's cursor on.
func isText(b []byte) bool {
	return utf8.Valid(b) && !strings.ContainsFunc(string(b), func(r rune) bool {
		return !unicode.IsPrint(r) && r != '\n' && r != '\t' && r != '\r'
	})
}
