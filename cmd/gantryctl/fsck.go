package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/namespace"
)

// A findingRow is a thing that fsck found.
type findingRow struct {
	Severity fsck.Severity `json:"severity"`
	What     string        `json:"what"`
	ID       string        `json:"id,omitempty"`
	Where    string        `json:"where,omitempty"`
	Why      string        `json:"why"`
	Done     string        `json:"done,omitempty"`
	Refs     []refRow      `json:"refs,omitempty"`
	Images   []string      `json:"images,omitempty"` // with their namespaces
}

type refRow struct {
	Namespace string `json:"namespace"`
	Kind      string `json:"kind"`
	ID        string `json:"id"`
}

func fsckCommand(n *node) *cobra.Command {
	c := &cobra.Command{
		Use: "fsck", Short: "Check what a daemon keeps", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(fsckContent(n), fsckSnapshots(n))
	return c
}

func fsckContent(n *node) *cobra.Command {
	var quick, repair, quiet bool
	var rate string
	c := &cobra.Command{
		Use:   "content [DIGEST…]",
		Short: "Check the blobs of every namespace, and what is known of them",
		Long: `Fsck content has contentd compare its records with each other and with its
files, and read every blob and check its bytes; or only the blobs that are
named. Nobody has to wait for it, and it can be interrupted. It prints what it
finds, and who counts on it, and exits with 1 if there is anything.

With --repair, records are put right, files that nobody knows are thrown away,
and a blob whose bytes are wrong is put into quarantine: it is absent then, until
it is pulled or put again, which is how it is mended.

A finding is a loss (of bytes or records that somebody has), waste (what takes
room for nobody) or a note.

Fields with -o json: severity, what, id (a digest), where, why, done, refs
(namespace, kind and id of what counts on it), images.`,
		Example: `  gantryctl fsck content --rate 100MiB
  gantryctl fsck content --quick -o json
  gantryctl fsck content --repair sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855`,
		Annotations: endless,
		RunE: func(c *cobra.Command, args []string) error {
			o := fsck.Options{Deep: !quick, Repair: repair, Only: args}
			var err error
			if o.Rate, err = parseSize(rate); err != nil {
				return usage(c, fmt.Errorf("--rate: %w", err))
			}
			for _, id := range args {
				if _, err := digest.Parse(id); err != nil {
					return usage(c, fmt.Errorf("%q is not a whole digest", id))
				}
			}
			if quick && len(args) > 0 {
				return usage(c, errors.New("--quick reads no blob, and there are some to be read"))
			}
			return n.withContentd(func(c *cobra.Command, op *operator) error {
				return n.fsck(c, op.checker, o, n.progress(c, "fsck", quiet))
			})(c, nil)
		},
	}
	f := c.Flags()
	f.BoolVar(&quick, "quick", false, "look at records and files, and read no bytes")
	f.BoolVar(&repair, "repair", false, "put right what can be, and quarantine what is corrupt")
	f.StringVar(&rate, "rate", "", "read at most so many `BYTES` a second, as in 100MiB")
	f.BoolVarP(&quiet, "quiet", "q", false, "say nothing of how far it is")
	return c
}

// fsck prints what a check finds, and fails if that is anything but notes.
func (n *node) fsck(c *cobra.Command, checker fsck.Checker, o fsck.Options, p *progress) error {
	var last fsck.Progress
	wrong := 0
	rows := func(yield func(findingRow, error) bool) {
		for item, err := range checker.Check(c.Context(), o) {
			if err != nil {
				yield(findingRow{}, err)
				return
			}
			last = item.Progress
			p.at(last.Bytes, last.BytesTotal)
			if item.Finding == nil {
				continue
			}
			if item.Finding.Severity != fsck.Note {
				wrong++
			}
			p.end()
			if !yield(n.findingRow(c.Context(), *item.Finding), nil) {
				return
			}
		}
	}
	out := c.OutOrStdout()
	var err error
	if n.output == "json" {
		err = stream(out, n.output, "", rows, nil)
	} else {
		for r, e := range rows {
			if err = e; err == nil {
				r.print(out)
			}
		}
	}
	p.end()
	switch {
	case err != nil:
		return fmt.Errorf("fsck, after %d records and %d objects: %w", last.Records, last.Objects, err)
	case wrong > 0 && o.Repair:
		return fmt.Errorf("things that were wrong: %d; what is absent or wrong now has to be pulled or put again: %w", wrong, errdefs.ErrDataLoss)
	case wrong > 0:
		return fmt.Errorf("things that are wrong: %d; --repair puts right what can be: %w", wrong, errdefs.ErrDataLoss)
	case n.output != "json":
		fmt.Fprintf(out, "ok: records: %d, objects read: %d, bytes: %s\n", last.Records, last.Objects, bytesize(last.Bytes))
	}
	return nil
}

func (n *node) findingRow(ctx context.Context, f fsck.Finding) findingRow {
	r := findingRow{Severity: f.Severity, What: f.What, ID: f.ID, Where: f.Where, Why: f.Why, Done: f.Done}
	for _, ref := range f.Refs {
		r.Refs = append(r.Refs, refRow(ref))
	}
	r.Images = n.imagesOf(ctx, f)
	return r
}

// imagesOf are the images that a finding is about, as far as the suite can be
// asked: what is found is more important than their names.
func (n *node) imagesOf(ctx context.Context, f fsck.Finding) []string {
	digests := map[string][]string{} // by namespace
	for _, r := range f.Refs {
		if r.Kind == "record" || r.Kind == "label" {
			digests[r.Namespace] = append(digests[r.Namespace], r.ID)
		}
	}
	if len(digests) == 0 || n.client == nil && n.reach(ctx) != nil {
		return nil
	}
	var names []string
	for ns, ids := range digests {
		images, err := n.client.Images.In(namespace.Scope{Name: ns}).List(ctx)
		if err != nil {
			continue
		}
		for _, i := range images {
			if slices.Contains(ids, i.Target.Digest.String()) {
				names = append(names, ns+" "+i.Name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// print prints a finding for people: a line, and what else there is below it.
func (r findingRow) print(w io.Writer) {
	about := r.ID
	if about == "" {
		about = r.Where
	}
	fmt.Fprintf(w, "%s: %s %s\n", r.Severity, r.What, printable(about))
	line := func(head, text string) {
		if text != "" {
			fmt.Fprintf(w, "  %-8s  %s\n", head, printable(text))
		}
	}
	line("why", r.Why)
	if r.ID != "" {
		line("where", r.Where)
	}
	line("had by", r.who("record"))
	line("leases", r.who("lease"))
	line("images", strings.Join(r.Images, ", "))
	line("done", r.Done)
}

// who are those who count on an object in one way.
func (r findingRow) who(kind string) string {
	var all []string
	for _, ref := range r.Refs {
		if ref.Kind != kind {
			continue
		}
		if name := ref.Namespace; kind == "record" {
			all = append(all, name)
		} else {
			all = append(all, name+" "+ref.ID)
		}
	}
	return strings.Join(all, ", ")
}

// sizeUnits are what a number of bytes may end with.
var sizeUnits = []struct {
	name  string
	bytes float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"T", 1 << 40}, {"B", 1},
}

// parseSize reads a number of bytes; none is 0.
func parseSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	number, unit := s, 1.0
	for _, u := range sizeUnits {
		if before, ok := strings.CutSuffix(s, u.name); ok {
			number, unit = before, u.bytes
			break
		}
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if n := f * unit; err == nil && n >= 1 && n < math.MaxInt64 {
		return int64(n), nil
	}
	return 0, fmt.Errorf("%q is no number of bytes, such as 500000, 64kB or 100MiB", s)
}
