package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/content"
)

// A putRow is what content put prints.
type putRow struct {
	Digest  digest.Digest `json:"digest"`
	Size    int64         `json:"size"`    // bytes
	Existed bool          `json:"existed"` // the namespace had it already
	Resumed int64         `json:"resumed"` // bytes that were there already
}

// putFlags are those of content put.
type putFlags struct {
	digest string
	ref    string
	labels []string
	quiet  bool
}

func contentPut(n *node) *cobra.Command {
	var f putFlags
	c := &cobra.Command{
		Use:   "put FILE",
		Short: "Make a file a blob",
		Long: `Put makes the bytes of a file a blob and prints its digest. FILE - is standard
input. A blob that is there already is success, and is not sent.

When contentd restarts, put waits and goes on. When put itself is cut off, the
same command goes on where it was: of a file within a day, of standard input
with --digest or --ref, if it has the same bytes again.

A blob that nothing refers to may be collected as garbage, unless it has the
label containerd.io/gc.root, whatever its value.

Fields with -o json: digest, size (bytes), existed (the namespace had it),
resumed (bytes that were there already).`,
		Example: `  gantryctl content put layer.tar.gz
  gantryctl content put --label containerd.io/gc.root=keep layer.tar.gz
  curl -s https://example.com/blob | gantryctl content put --digest sha256:… -`,
		Args:        cobra.ExactArgs(1),
		Annotations: endless,
		RunE: func(c *cobra.Command, args []string) error {
			o, err := f.options()
			if err != nil {
				return usage(c, err)
			}
			return n.reaching(func(c *cobra.Command, args []string) error { return f.put(c, n, args[0], o) })(c, args)
		},
	}
	c.Flags().StringVar(&f.digest, "digest", "", "what the bytes must be: `DIGEST`")
	c.Flags().StringVar(&f.ref, "ref", "", "call it `REF` while it is written; made of the digest unless given")
	c.Flags().StringArrayVarP(&f.labels, "label", "l", nil, "give the blob a label `KEY=VALUE`")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print only the digest, and nothing of how far it is")
	return c
}

func (f *putFlags) options() (client.PutOptions, error) {
	o := client.PutOptions{Digest: digest.Digest(f.digest), Ref: f.ref, Labels: make(map[string]string)}
	if f.digest != "" {
		if err := content.CheckDigest(o.Digest); err != nil {
			return o, fmt.Errorf("--digest: %w", err)
		}
	}
	for _, l := range f.labels {
		key, value, ok := strings.Cut(l, "=")
		if !ok || key == "" {
			return o, fmt.Errorf("--label %s: want KEY=VALUE", l)
		}
		o.Labels[key] = value
	}
	return o, nil
}

func (f *putFlags) put(c *cobra.Command, n *node, name string, o client.PutOptions) error {
	p := n.progress(c, "put "+filepath.Base(name), f.quiet)
	o.Progress = p.follow(o.Size)
	var result client.PutResult
	var err error
	if name == "-" {
		result, err = n.in().Put(c.Context(), c.InOrStdin(), o)
	} else {
		result, err = n.in().PutFile(c.Context(), name, o)
	}
	p.end()
	if err != nil {
		return putError(c.Context(), name, result, err)
	}
	row := putRow{Digest: result.Digest, Size: result.Size, Existed: result.Existed, Resumed: result.Resumed}
	if n.output == "json" {
		return show(c.OutOrStdout(), n.output, nil, []putRow{row}, nil)
	}
	switch {
	case f.quiet:
	case row.Existed:
		fmt.Fprintf(c.ErrOrStderr(), "gantryctl: %s was here already\n", name)
	case row.Resumed > 0:
		fmt.Fprintf(c.ErrOrStderr(), "gantryctl: %s of %s were here already\n", bytesize(row.Resumed), bytesize(row.Size))
	}
	fmt.Fprintln(c.OutOrStdout(), row.Digest)
	return nil
}

// putError says of an error what is left and what to do.
func putError(ctx context.Context, name string, r client.PutResult, err error) error {
	goesOn := ""
	if r.Kept > 0 {
		goesOn = fmt.Sprintf("; %s are kept, and the same command goes on from there", bytesize(r.Kept))
	}
	var path *os.PathError
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("put %s: interrupted%s", name, goesOn)
	case errors.As(err, &path):
		return fmt.Errorf("put: %w%s", err, goesOn)
	case errors.Is(err, errdefs.ErrFailedPrecondition):
		return fmt.Errorf("put %s: %w; nothing of it is kept", name, err)
	case errors.Is(err, errdefs.ErrNotFound):
		return fmt.Errorf("put %s: it was aborted meanwhile: %w", name, err)
	}
	return fmt.Errorf("put %s: %w%s", name, err, goesOn)
}
