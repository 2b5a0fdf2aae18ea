package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/image"
	"github.com/gantryd/gantry/services/namespace"
)

func imageCommand(n *node) *cobra.Command {
	c := &cobra.Command{
		Use: "image", Short: "Images", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(imageImport(n), imageLs(n), imageRm(n))
	return c
}

// An imageRow is a row of image ls, and what image import prints.
type imageRow struct {
	Name      string            `json:"name"`
	Digest    string            `json:"digest"`
	MediaType string            `json:"media_type"`
	CreatedAt time.Time         `json:"created_at"`
	UpdatedAt time.Time         `json:"updated_at"`
	Labels    map[string]string `json:"labels,omitempty"`
}

func newImageRow(i image.Image) imageRow {
	return imageRow{
		Name: i.Name, Digest: i.Target.Digest.String(), MediaType: i.Target.MediaType,
		CreatedAt: i.CreatedAt, UpdatedAt: i.UpdatedAt, Labels: i.Labels,
	}
}

func imageImport(n *node) *cobra.Command {
	var name, into string
	var noUnpack, quiet bool
	c := &cobra.Command{
		Use:   "import FILE",
		Short: "Import images from an archive",
		Long: `Import reads an archive of images: an OCI layout in a tar file, or what docker
save writes; plain, or compressed by gzip or zstd. FILE - is standard input.

With --name the archive has one image, which gets that name; an image that had
it is replaced. Without, the images get the names that the archive gives them,
and none of these replaces an image that is here.

An archive that is damaged in any way changes nothing.`,
		Example: `  gantryctl image import demo.tar
  docker save alpine | gantryctl image import --name alpine:3 -`,
		Args:        cobra.ExactArgs(1),
		Annotations: endless,
		RunE: n.reaching(func(c *cobra.Command, args []string) error {
			in, size := c.InOrStdin(), int64(0)
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() {
					size = fi.Size()
				}
				in = f
			}
			p := n.progress(c, "import "+filepath.Base(args[0]), quiet)
			o := client.ImportOptions{Name: name, OwnNames: name == "", Progress: p.follow(size)}
			if o.Snapshotter = into; into == "" && !noUnpack {
				var err error
				if o.Snapshotter, err = n.snapshotter(c.Context()); err != nil {
					return err
				}
			}
			images, err := n.in().Import(c.Context(), in, o)
			p.end()
			switch {
			case errors.Is(err, errdefs.ErrAlreadyExists), errors.Is(err, client.ErrNameless):
				return fmt.Errorf("import %s: %w; --name NAME says what to call the image", args[0], err)
			case err != nil:
				return fmt.Errorf("import %s: %w", args[0], err)
			}
			var rows []imageRow
			for _, i := range images {
				rows = append(rows, newImageRow(i))
			}
			return show(c.OutOrStdout(), n.output, []string{"NAME", "DIGEST"}, rows,
				func(r imageRow) []string { return []string{r.Name, r.Digest} })
		}),
	}
	c.Flags().StringVar(&name, "name", "", "call the image `NAME`")
	c.Flags().BoolVar(&noUnpack, "no-unpack", false, "leave unpacking to the first run")
	c.Flags().StringVar(&into, "snapshotter", "", "unpack into this `snapshotter` instead of the namespace's")
	c.MarkFlagsMutuallyExclusive("no-unpack", "snapshotter")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "say nothing of how far it is")
	return c
}

// snapshotter returns the namespace's.
func (n *node) snapshotter(ctx context.Context) (string, error) {
	info, err := n.client.Namespaces.Get(ctx, n.namespace)
	if s := info.Labels[namespace.LabelSnapshotter]; s != "" {
		return s, err
	}
	return client.SnapshotterDefault, err
}

func imageLs(n *node) *cobra.Command {
	var filters []string
	c := &cobra.Command{
		Use:   "ls",
		Short: "List images",
		Long: `Ls lists the images of the namespace.

Fields with -o json: name, digest, media_type, created_at, updated_at, labels.`,
		Example: `  gantryctl image ls
  gantryctl image ls --filter 'name~=^demo'`,
		Args: cobra.NoArgs,
		RunE: n.reaching(func(c *cobra.Command, _ []string) error {
			images, err := n.client.Images.In(namespace.Scope{Name: n.namespace}).List(c.Context(), filters...)
			if err != nil {
				return err
			}
			var rows []imageRow
			for _, i := range images {
				rows = append(rows, newImageRow(i))
			}
			now := time.Now()
			return show(c.OutOrStdout(), n.output, []string{"NAME", "DIGEST", "UPDATED"}, rows,
				func(r imageRow) []string { return []string{r.Name, r.Digest, since(r.UpdatedAt, now)} })
		}),
	}
	c.Flags().StringArrayVar(&filters, "filter", nil, "only those that `MATCH`, as in name==demo:latest; several are alternatives")
	return c
}

func imageRm(n *node) *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME…",
		Aliases: []string{"remove"},
		Short:   "Remove images",
		Long: `Rm removes names. What they named stays for containers that use it, and for the
other names of the same image.`,
		Example:           `  gantryctl image rm demo:latest`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: n.completeImages,
		RunE: n.reaching(func(c *cobra.Command, args []string) error {
			store := n.client.Images.In(namespace.Scope{Name: n.namespace})
			return each(args, func(name string) error {
				if err := store.Delete(c.Context(), name, image.DeleteOptions{}); err != nil {
					return err
				}
				fmt.Fprintln(c.OutOrStdout(), name)
				return nil
			})
		}),
	}
}

// each calls f with every name, also when it failed with one before.
func each(names []string, f func(name string) error) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, f(name))
	}
	return errors.Join(errs...)
}
