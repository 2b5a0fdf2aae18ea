package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/content"
)

// A usageRow is what content du says.
type usageRow struct {
	Namespaces []namespaceUsageRow `json:"namespaces"`
	Blobs      amountRow           `json:"blobs"` // each counted once
	Ingests    amountRow           `json:"ingests"`
	Trash      amountRow           `json:"trash"`
	Quarantine amountRow           `json:"quarantine"`
	Free       int64               `json:"free_bytes"` // of the disk
}

type namespaceUsageRow struct {
	Namespace string `json:"namespace"`
	Blobs     int64  `json:"blobs"`
	Bytes     int64  `json:"bytes"`
	Shared    int64  `json:"shared_bytes"` // of bytes, those that other namespaces have too
}

type amountRow struct {
	Count int64 `json:"count"`
	Bytes int64 `json:"bytes"`
}

func newUsageRow(u content.Usage) usageRow {
	r := usageRow{
		Namespaces: []namespaceUsageRow{},
		Blobs:      amountRow(u.Blobs), Ingests: amountRow(u.Ingests), Trash: amountRow(u.Trash), Quarantine: amountRow(u.Quarantine),
		Free: u.Free,
	}
	for _, n := range u.Namespaces {
		r.Namespaces = append(r.Namespaces, namespaceUsageRow(n))
	}
	return r
}

func contentDu(n *node) *cobra.Command {
	return &cobra.Command{
		Use:   "du",
		Short: "Show what takes the room",
		Long: `Du shows how much each namespace has, in blobs and in bytes, and how much of that
other namespaces have too, which is on the disk once; and then what is on the
disk: blobs, each counted once; ingests, which are being written; trash, which
nobody has and is going to be removed; and quarantine, what was found to be
corrupt. It asks contentd itself, not the gateway.

Fields with -o json: namespaces (namespace, blobs, bytes, shared_bytes), blobs,
ingests, trash, quarantine (count and bytes each), free_bytes.`,
		Example: `  gantryctl content du
  gantryctl --sockets /tmp/suite/state content du -o json`,
		Args: cobra.NoArgs,
		RunE: n.withContentd(func(c *cobra.Command, o *operator) error {
			usage, err := o.meter.Usage(c.Context())
			if err != nil {
				return err
			}
			out, row := c.OutOrStdout(), newUsageRow(usage)
			if n.output == "json" {
				return show(out, n.output, nil, []usageRow{row}, nil)
			}
			if err := show(out, n.output, []string{"NAMESPACE", "BLOBS", "SIZE", "SHARED"}, row.Namespaces, namespaceUsageRow.cells); err != nil {
				return err
			}
			fmt.Fprintln(out)
			return show(out, n.output, []string{"ON DISK", "COUNT", "SIZE"}, row.onDisk(), func(cells []string) []string { return cells })
		}),
	}
}

func (r namespaceUsageRow) cells() []string {
	return []string{r.Namespace, strconv.FormatInt(r.Blobs, 10), bytesize(r.Bytes), bytesize(r.Shared)}
}

// onDisk are the lines about the disk.
func (r usageRow) onDisk() [][]string {
	line := func(name string, a amountRow) []string {
		return []string{name, strconv.FormatInt(a.Count, 10), bytesize(a.Bytes)}
	}
	return [][]string{
		line("blobs", r.Blobs), line("ingests", r.Ingests), line("trash", r.Trash), line("quarantine", r.Quarantine),
		{"free", "-", bytesize(r.Free)},
	}
}
