package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
)

// A pathRow is a row of snapshot diff.
type pathRow struct {
	Change string `json:"change"`
	Path   string `json:"path"`
	Size   int64  `json:"size,omitempty"` // of a file, in bytes
}

// What became of a path. Of one that is there a layer does not say whether it was
// there before.
const (
	changeWritten = "W"
	changeDeleted = "D"
)

// A layerRow is what snapshot diff prints where the layer is kept.
type layerRow struct {
	Digest    string `json:"digest"`
	MediaType string `json:"media_type"`
	Size      int64  `json:"size"` // bytes
	File      string `json:"file,omitempty"`
}

func snapshotDiff(s *shelf) *cobra.Command {
	var file string
	var keep bool
	c := &cobra.Command{
		Use:   "diff KEY [OTHER]",
		Short: "Show what differs between snapshots, or make a layer of it",
		Long: `Diff shows what a snapshot has beyond its parent, or with a second one, what has
to be done to the first to make it the second: W is a path that is written, new
or not, and D one that is deleted.

With -f FILE it writes that as a layer to a file, an uncompressed tar archive, and
with --into-content as a blob, compressed by gzip, which the label
containerd.io/gc.root keeps.

Fields with -o json: change (W or D), path, size (of a file, in bytes). Where a
layer is kept: digest, media_type, size (bytes), file.`,
		Example: `  gantryctl snapshot diff web
  gantryctl snapshot diff -f layer.tar web
  gantryctl snapshot diff 0123456789ab web`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: s.completeKey(2),
		Annotations:       endless,
		RunE: func(c *cobra.Command, args []string) error {
			if file != "" && keep {
				return usage(c, errors.New("want -f FILE or --into-content"))
			}
			return s.having(func(c *cobra.Command, store snapshot.Store, args []string) error {
				return s.leased(c.Context(), func(scope namespace.Scope) error {
					return s.diff(c, scope, args, file, keep)
				})
			})(c, args)
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "write the layer to `FILE`")
	c.Flags().BoolVar(&keep, "into-content", false, "keep the layer as a blob")
	return c
}

// diffTime is how long what a diff that was killed left is kept.
const diffTime = time.Hour

// leased calls f with a lease, for what is made on the way.
func (s *shelf) leased(ctx context.Context, f func(scope namespace.Scope) error) error {
	leases := s.client.Leases.In(s.scope())
	l, err := leases.Create(ctx, "", map[string]string{lease.LabelExpire: time.Now().Add(diffTime).UTC().Format(time.RFC3339)})
	if err != nil {
		return err
	}
	err = f(namespace.Scope{Name: s.namespace, Lease: l.ID})
	return errors.Join(err, leases.Delete(context.WithoutCancel(ctx), l.ID, false))
}

func (s *shelf) diff(c *cobra.Command, scope namespace.Scope, args []string, file string, keep bool) error {
	ctx := c.Context()
	store, err := s.client.Snapshots.In(scope, s.snapshotter)
	if err != nil {
		return err
	}
	lower, upper, err := pairOf(ctx, store, args)
	if err != nil {
		return err
	}
	v := &viewer{store: store}
	defer v.end(context.WithoutCancel(ctx))
	below, err := v.mounts(ctx, lower)
	if err != nil {
		return err
	}
	above, err := v.mounts(ctx, upper)
	if err != nil {
		return err
	}
	o := diff.DiffOptions{MediaType: ocispec.MediaTypeImageLayer}
	if keep {
		o.MediaType = ocispec.MediaTypeImageLayerGzip
	}
	layer, err := s.client.Diffs.In(scope).Diff(ctx, below, above, o)
	if errors.Is(err, errdefs.ErrNotImplemented) {
		return fmt.Errorf("snapshotter %s makes no layers here: %w", s.snapshotter, err)
	}
	if err != nil {
		return err
	}
	out := c.OutOrStdout()
	row := layerRow{Digest: layer.Digest.String(), MediaType: layer.MediaType, Size: layer.Size, File: file}
	switch {
	case file != "":
		if _, err := s.in().GetFile(ctx, layer.Digest, file, client.GetOptions{}); err != nil {
			return err
		}
		return showLayer(out, s.output, row)
	case keep:
		if err := s.root(ctx, layer.Digest); err != nil {
			return err
		}
		return showLayer(out, s.output, row)
	}
	r, err := s.client.Content.In(scope).Open(ctx, layer.Digest)
	if err != nil {
		return err
	}
	defer r.Close()
	return stream(out, s.output, "", changesIn(io.NewSectionReader(r, 0, r.Size())), func(r pathRow) string { return r.Change + " " + printable(r.Path) })
}

func showLayer(out io.Writer, output string, row layerRow) error {
	return show(out, output, []string{"DIGEST", "SIZE"}, []layerRow{row}, func(r layerRow) []string {
		return []string{r.Digest, bytesize(r.Size)}
	})
}

// root keeps a blob from garbage collection.
func (s *shelf) root(ctx context.Context, d digest.Digest) error {
	_, err := s.blobs().Update(ctx, content.Info{Digest: d, Labels: map[string]string{labelRoot: "gantryctl snapshot diff"}}, "labels."+labelRoot)
	return err
}

// pairOf returns the snapshots that arguments mean; lower is empty for nothing.
func pairOf(ctx context.Context, store snapshot.Store, args []string) (lower, upper string, err error) {
	first, err := find(ctx, store, args[0])
	if err != nil {
		return "", "", err
	}
	if len(args) == 2 {
		upper, err = find(ctx, store, args[1])
		return first, upper, err
	}
	i, err := store.Stat(ctx, first)
	return i.Parent, first, err
}

// changesIn reads a layer.
func changesIn(layer io.Reader) func(yield func(pathRow, error) bool) {
	return func(yield func(pathRow, error) bool) {
		t := tar.NewReader(layer)
		for {
			h, err := t.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(pathRow{}, err)
				return
			}
			r := pathRow{Change: changeWritten, Path: "/" + strings.Trim(path.Clean("/"+h.Name), "/")}
			if h.Typeflag == tar.TypeReg {
				r.Size = h.Size
			}
			if name, ok := strings.CutPrefix(path.Base(r.Path), ".wh."); ok {
				r = pathRow{Change: changeDeleted, Path: path.Join(path.Dir(r.Path), name)}
			}
			if !yield(r, nil) {
				return
			}
		}
	}
}

// A viewer makes views of committed snapshots, and takes them away.
type viewer struct {
	store snapshot.Store
	keys  []string
}

// mounts returns those of a snapshot; none for an empty key.
func (v *viewer) mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	if key == "" {
		return nil, nil
	}
	i, err := v.store.Stat(ctx, key)
	if err != nil {
		return nil, err
	}
	if i.Kind != snapshot.Committed {
		return v.store.Mounts(ctx, key)
	}
	view := fmt.Sprintf("gantryctl %d %s", time.Now().UnixNano(), key)
	m, err := v.store.View(ctx, view, key, snapshot.Options{})
	if err == nil {
		v.keys = append(v.keys, view)
	}
	return m, err
}

// end removes the views. One that stays has no lease, and is garbage.
func (v *viewer) end(ctx context.Context) {
	for _, key := range v.keys {
		_ = v.store.Remove(ctx, key)
	}
}
