package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/content"
)

// An ingestRow is a row of content ingests.
type ingestRow struct {
	Ref       string        `json:"ref"`
	Offset    int64         `json:"offset"`          // bytes written so far
	Total     int64         `json:"total,omitempty"` // bytes expected
	Expected  digest.Digest `json:"expected,omitempty"`
	StartedAt time.Time     `json:"started_at"`
	UpdatedAt time.Time     `json:"updated_at"`
}

func newIngestRow(s content.Status) ingestRow {
	return ingestRow{Ref: s.Ref, Offset: s.Offset, Total: s.Total, Expected: s.Expected, StartedAt: s.StartedAt, UpdatedAt: s.UpdatedAt}
}

func (r ingestRow) cells(now time.Time) []string {
	total := "-"
	if r.Total > 0 {
		total = bytesize(r.Total)
	}
	return []string{
		printable(r.Ref), bytesize(r.Offset), total, percent(r.Offset, r.Total),
		short(now.Sub(r.StartedAt)), since(r.UpdatedAt, now),
	}
}

func contentIngests(n *node) *cobra.Command {
	var filters []string
	c := &cobra.Command{
		Use:   "ingests",
		Short: "List blobs that are being written",
		Long: `Ingests lists the blobs that are being written, or were left to be resumed; one
that nobody writes is forgotten after a day. The only field of filters is ref.

Fields with -o json: ref, offset (bytes written so far), total (bytes expected),
expected (digest), started_at, updated_at.`,
		Example: `  gantryctl content ingests
  gantryctl content ingests --filter 'ref~=^put-'`,
		Args: cobra.NoArgs,
		RunE: n.reaching(func(c *cobra.Command, _ []string) error {
			statuses, err := n.blobs().ListStatuses(c.Context(), filters...)
			if err != nil {
				return err
			}
			var rows []ingestRow
			for _, s := range statuses {
				rows = append(rows, newIngestRow(s))
			}
			now := time.Now()
			return show(c.OutOrStdout(), n.output, []string{"REF", "OFFSET", "TOTAL", "%", "AGE", "UPDATED"}, rows,
				func(r ingestRow) []string { return r.cells(now) })
		}),
	}
	c.Flags().StringArrayVar(&filters, "filter", nil, "only those that `MATCH`, as in ref~=^put-; several are alternatives")
	return c
}

func contentAbort(n *node) *cobra.Command {
	return &cobra.Command{
		Use:   "abort REF…",
		Short: "Forget blobs that are being written",
		Long: `Abort forgets ingests and their bytes. Whoever writes one at the time fails, and
may begin anew.`,
		Example:           `  gantryctl content abort put-sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: n.completeRefs,
		RunE: n.reaching(func(c *cobra.Command, args []string) error {
			return each(args, func(ref string) error {
				err := n.blobs().Abort(c.Context(), ref)
				if errors.Is(err, errdefs.ErrNotFound) {
					return fmt.Errorf("%w; gantryctl -n %s content ingests lists what there is", err, n.namespace)
				}
				if err != nil {
					return err
				}
				fmt.Fprintln(c.OutOrStdout(), ref)
				return nil
			})
		}),
	}
}

// completeRefs offers the ingests that there are.
func (n *node) completeRefs(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return n.complete(c, func(ctx context.Context) (refs []string, err error) {
		statuses, err := n.blobs().ListStatuses(ctx)
		for _, s := range statuses {
			refs = append(refs, s.Ref)
		}
		return refs, err
	})
}
