package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
)

func snapshotCommand(n *node) *cobra.Command {
	s := &shelf{node: n}
	c := &cobra.Command{
		Use: "snapshot", Short: "Snapshots", Args: cobra.NoArgs,
		Long: `Snapshot looks after snapshots: the layers of images as trees of files, and what
containers write on top of them.

Each is known by a key, which is any text; that of an image's layer is a digest.
Where a key is asked for, eight digits of such a digest or more will do, if no
other key begins with them. Snapshots are those of one snapshotter: the
namespace's, unless --snapshotter names another.`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.PersistentFlags().StringVar(&s.snapshotter, "snapshotter", "", "`name` of the snapshotter; the namespace's unless it is given")
	c.AddCommand(
		snapshotLs(s), snapshotTree(s), snapshotInfo(s), snapshotUsage(s), snapshotDiff(s), snapshotMount(s), snapshotRm(s),
	)
	return c
}

// A shelf is a node and the snapshotter that the flags name.
type shelf struct {
	*node
	snapshotter string
}

// open returns the snapshots of the namespace.
func (s *shelf) open(ctx context.Context) (_ snapshot.Store, err error) {
	if s.snapshotter == "" {
		if s.snapshotter, err = s.node.snapshotter(ctx); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return nil, err
		}
	}
	return s.client.Snapshots.In(s.scope(), s.snapshotter)
}

func (s *shelf) scope() namespace.Scope { return namespace.Scope{Name: s.namespace} }

// having is run of a command that needs the snapshots.
func (s *shelf) having(run func(c *cobra.Command, store snapshot.Store, args []string) error) func(*cobra.Command, []string) error {
	return s.reaching(func(c *cobra.Command, args []string) error {
		store, err := s.open(c.Context())
		if err == nil {
			err = run(c, store, args)
		}
		return s.advise(err)
	})
}

// advise says what to do about an error.
func (s *shelf) advise(err error) error {
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		return fmt.Errorf("%w; gantryctl -n %s snapshot --snapshotter %s ls lists what there is", err, s.namespace, s.snapshotter)
	case errors.Is(err, errdefs.ErrInvalidArgument) && strings.Contains(err.Error(), "snapshotter not loaded"):
		return fmt.Errorf("%w; ctr plugins ls says which snapshotters there are", err)
	}
	return err
}

// A snapshotRow is a row of snapshot ls.
type snapshotRow struct {
	Key       string            `json:"key"`
	Kind      string            `json:"kind"`
	Parent    string            `json:"parent,omitempty"`
	CreatedAt time.Time         `json:"created_at"`
	UpdatedAt time.Time         `json:"updated_at"`
	Labels    map[string]string `json:"labels,omitempty"`
}

func newSnapshotRow(i snapshot.Info) snapshotRow {
	return snapshotRow{Key: i.Name, Kind: string(i.Kind), Parent: i.Parent, CreatedAt: i.CreatedAt, UpdatedAt: i.UpdatedAt, Labels: i.Labels}
}

const snapshotFilters = "only those that `MATCH`, as in kind==active or labels.app~=^web; several are alternatives"

func snapshotLs(s *shelf) *cobra.Command {
	var filters []string
	var quiet, full bool
	c := &cobra.Command{
		Use:   "ls",
		Short: "List snapshots",
		Long: `Ls lists the snapshots of the namespace. Digests and labels are cut short, unless
--full is given; what is left of a digest names the snapshot to other commands.

Filters have the fields name (the key), kind (active, view or committed), parent
and labels.<key>.

Fields with -o json: key, kind, parent, created_at, updated_at, labels.`,
		Example: `  gantryctl snapshot ls
  gantryctl snapshot ls --filter kind==active
  gantryctl -n k8s.io snapshot --snapshotter native ls -q`,
		Args: cobra.NoArgs,
		RunE: s.having(func(c *cobra.Command, store snapshot.Store, _ []string) error {
			out, rows, now := c.OutOrStdout(), listSnapshots(c.Context(), store, filters), time.Now()
			name := briefKey
			switch {
			case quiet:
				return stream(out, s.output, "", rows, func(r snapshotRow) string { return printable(r.Key) })
			case full:
				name = printable
			}
			width := 24
			if full {
				width = 71
			}
			return stream(out, s.output, snapshotLine(width, "KEY", "KIND", "PARENT", "AGE", "LABELS"), rows, func(r snapshotRow) string {
				labels := briefLabels(r.Labels)
				if full {
					labels = words(r.Labels)
				}
				return snapshotLine(width, name(r.Key), r.Kind, name(cmp.Or(r.Parent, "-")), short(now.Sub(r.CreatedAt)), strings.Join(labels, ","))
			})
		}),
	}
	c.Flags().StringArrayVar(&filters, "filter", nil, snapshotFilters)
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only the keys")
	c.Flags().BoolVar(&full, "full", false, "cut nothing short")
	return c
}

// listSnapshots are the rows of snapshot ls.
func listSnapshots(ctx context.Context, store snapshot.Store, filters []string) iter.Seq2[snapshotRow, error] {
	return func(yield func(snapshotRow, error) bool) {
		for i, err := range store.List(ctx, filters...) {
			if !yield(newSnapshotRow(i), err) {
				return
			}
		}
	}
}

// snapshotLine is a line of snapshot ls, whose columns are as wide whatever is in
// them.
func snapshotLine(width int, key, kind, parent, age, labels string) string {
	return strings.TrimRight(fmt.Sprintf("%-*s  %-9s  %-*s  %-6s  %s", width, key, kind, width, parent, age, labels), " ")
}

// briefKey is a key as it is shown where there is little room: a digest is cut
// short.
func briefKey(key string) string {
	if d := digest.Digest(key); d.Validate() == nil {
		return brief(d)
	}
	return printable(key)
}

// find returns the key that an argument says whole, or cut short if it is a
// digest.
func find(ctx context.Context, store snapshot.Store, arg string) (string, error) {
	_, err := store.Stat(ctx, arg)
	m := shortDigest.FindStringSubmatch(arg)
	if !errors.Is(err, errdefs.ErrNotFound) || m == nil || len(m[2]) < digitsMin {
		return arg, err
	}
	var found []string
	for i, listErr := range store.List(ctx, "name~="+strconv.Quote("^"+cmp.Or(m[1], "[a-z0-9]+")+":"+regexp.QuoteMeta(m[2]))) {
		if listErr != nil {
			return "", listErr
		}
		if found = append(found, i.Name); len(found) > candidatesMax {
			break
		}
	}
	switch len(found) {
	case 0:
		return "", err
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%s is ambiguous, give more of it: %s: %w", arg, strings.Join(found, ", "), errdefs.ErrInvalidArgument)
}

// completeKeys offers the keys that there are.
func (s *shelf) completeKeys(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	return s.complete(c, func(ctx context.Context) (names []string, err error) {
		store, err := s.open(ctx)
		if err != nil {
			return nil, err
		}
		for i, err := range store.List(ctx, "name~="+strconv.Quote("^"+regexp.QuoteMeta(word))) {
			if err != nil {
				return nil, err
			}
			if slices.Contains(args, i.Name) || printable(i.Name) != i.Name {
				continue
			}
			if names = append(names, i.Name); len(names) == completionsMax {
				break
			}
		}
		return names, nil
	})
}

// completeKey offers keys for the first arguments, as many as max, and nothing
// for others.
func (s *shelf) completeKey(max int) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= max {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return s.completeKeys(c, args, word)
	}
}
