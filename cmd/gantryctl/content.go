package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/namespace"
)

func contentCommand(n *node) *cobra.Command {
	c := &cobra.Command{
		Use: "content", Short: "Blobs", Args: cobra.NoArgs,
		Long: `Content looks after blobs, the bytes that images are made of, and after ingests,
the blobs that are still being written.

A blob is named by the digest of its bytes. Where a digest is asked for, eight of
its digits or more will do, if no other blob begins with them.`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(
		contentLs(n), contentInfo(n), contentGet(n), contentPut(n), contentLabel(n), contentRm(n),
		contentVerify(n), contentDu(n), contentIngests(n), contentAbort(n),
	)
	return c
}

// blobs are those of the namespace that the flags name.
func (n *node) blobs() content.Store { return n.client.Content.In(namespace.Scope{Name: n.namespace}) }

// A blobRow is a row of content ls and info.
type blobRow struct {
	Digest    digest.Digest     `json:"digest"`
	Size      int64             `json:"size"` // bytes
	CreatedAt time.Time         `json:"created_at"`
	UpdatedAt time.Time         `json:"updated_at"`
	Labels    map[string]string `json:"labels,omitempty"`
}

func newBlobRow(i content.Info) blobRow {
	return blobRow{Digest: i.Digest, Size: i.Size, CreatedAt: i.CreatedAt, UpdatedAt: i.UpdatedAt, Labels: i.Labels}
}

// listBlobs are the rows of content ls.
func listBlobs(ctx context.Context, blobs content.Blobs, filters []string) iter.Seq2[blobRow, error] {
	return func(yield func(blobRow, error) bool) {
		for i, err := range blobs.List(ctx, filters...) {
			if !yield(newBlobRow(i), err) {
				return
			}
		}
	}
}

const blobFilters = "only those that `MATCH`, as in size==2 or labels.app~=^web; several are alternatives"

func contentLs(n *node) *cobra.Command {
	var filters []string
	var quiet, full bool
	c := &cobra.Command{
		Use:   "ls",
		Short: "List blobs",
		Long: `Ls lists the blobs of the namespace. Digests and labels are cut short, unless
--full is given; what is left of a digest names the blob to other commands.

Filters have the fields digest, size and labels.<key>.

Fields with -o json: digest, size (bytes), created_at, updated_at, labels.`,
		Example: `  gantryctl content ls
  gantryctl content ls --filter 'labels."containerd.io/distribution.source.docker.io"~=alpine'
  gantryctl content ls -q --filter 'digest~=^sha256:00'`,
		Args: cobra.NoArgs,
		RunE: n.reaching(func(c *cobra.Command, _ []string) error {
			rows, now := listBlobs(c.Context(), n.blobs(), filters), time.Now()
			switch {
			case quiet:
				return stream(c.OutOrStdout(), n.output, "", rows, func(r blobRow) string { return r.Digest.String() })
			case full:
				return stream(c.OutOrStdout(), n.output, blobLine(71, "DIGEST", "SIZE", "AGE", "LABELS"), rows,
					func(r blobRow) string { return r.line(71, r.Digest.String(), now, words(r.Labels)) })
			}
			return stream(c.OutOrStdout(), n.output, blobLine(19, "DIGEST", "SIZE", "AGE", "LABELS"), rows,
				func(r blobRow) string { return r.line(19, brief(r.Digest), now, briefLabels(r.Labels)) })
		}),
	}
	c.Flags().StringArrayVar(&filters, "filter", nil, blobFilters)
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only the digests")
	c.Flags().BoolVar(&full, "full", false, "cut nothing short")
	return c
}

// blobLine is a line of content ls. The columns are as wide whatever is in
// them: the lines are printed before all are known.
func blobLine(width int, digest, size, age, labels string) string {
	return strings.TrimRight(fmt.Sprintf("%-*s  %-8s  %-6s  %s", width, digest, size, age, labels), " ")
}

func (r blobRow) line(width int, digest string, now time.Time, labels []string) string {
	return blobLine(width, digest, bytesize(r.Size), short(now.Sub(r.CreatedAt)), strings.Join(labels, ","))
}

// briefDigits is how many digits of a digest are shown where it is cut short.
const briefDigits = 12

// brief is a digest cut short.
func brief(d digest.Digest) string {
	algorithm, digits, _ := strings.Cut(d.String(), ":")
	return algorithm + ":" + digits[:min(briefDigits, len(digits))]
}

// words are labels as they are written, sorted.
func words(labels map[string]string) []string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		all = append(all, printable(key+"="+labels[key]))
	}
	return all
}

// briefColumns is how much of labels is shown where they are cut short.
const briefColumns = 60

// briefLabels are words cut short.
func briefLabels(labels map[string]string) []string {
	short := maps.Clone(labels)
	for key, value := range short {
		if d, err := digest.Parse(value); err == nil {
			short[key] = brief(d)
		}
	}
	line := strings.Join(words(short), ",")
	if cutLine := cut(line, briefColumns); cutLine != line {
		line = cutLine + "…"
	}
	return []string{line}
}

func contentInfo(n *node) *cobra.Command {
	return &cobra.Command{
		Use:   "info DIGEST…",
		Short: "Show what is known of blobs",
		Long: `Info shows what the namespace knows of blobs.

Fields with -o json: digest, size (bytes), created_at, updated_at, labels.`,
		Example:           `  gantryctl content info sha256:e3b0c44298fc`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: n.completeBlobs,
		RunE: n.reaching(func(c *cobra.Command, args []string) error {
			var rows []blobRow
			err := n.eachBlob(c, args, func(d digest.Digest) error {
				info, err := n.blobs().Info(c.Context(), d)
				if err == nil {
					rows = append(rows, newBlobRow(info))
				}
				return err
			})
			if n.output == "json" {
				return errors.Join(err, show(c.OutOrStdout(), n.output, nil, rows, nil))
			}
			now := time.Now()
			for i, r := range rows {
				if i > 0 {
					fmt.Fprintln(c.OutOrStdout())
				}
				r.sheet(c.OutOrStdout(), now)
			}
			return err
		}),
	}
}

// sheet prints all that is known of a blob.
func (r blobRow) sheet(w io.Writer, now time.Time) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	at := func(when time.Time) string {
		return when.Local().Format(time.DateTime) + " (" + since(when, now) + ")"
	}
	fmt.Fprintf(t, "Digest:\t%s\n", r.Digest)
	fmt.Fprintf(t, "Size:\t%s (%d bytes)\n", bytesize(r.Size), r.Size)
	fmt.Fprintf(t, "Created:\t%s\n", at(r.CreatedAt))
	fmt.Fprintf(t, "Updated:\t%s\n", at(r.UpdatedAt))
	name := "Labels:"
	for _, word := range words(r.Labels) {
		fmt.Fprintf(t, "%s\t%s\n", name, word)
		name = ""
	}
	t.Flush()
}
