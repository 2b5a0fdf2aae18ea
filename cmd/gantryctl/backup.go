package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/backup"
	"github.com/gantryd/gantry/services/suite"
)

func backupCommand(n *node) *cobra.Command {
	c := &cobra.Command{
		Use: "backup", Short: "Copy the records of a daemon", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(n.backupOf(suite.Contentd, &cobra.Command{
		Use:   "content -f FILE",
		Short: "Copy what is known of the blobs of every namespace",
		Long: `Backup content writes the records of contentd to a file, as they are at one
moment, while contentd goes on. The bytes of blobs are not in it. contentd makes
backups by itself too; this one is to be kept elsewhere.`,
		Example: `  gantryctl backup content -f /mnt/content.backup
  gantryctl backup content -f - | ssh elsewhere 'cat > content.backup'`,
	}), n.backupOf(suite.Snapshotd, &cobra.Command{
		Use:   "snapshots -f FILE",
		Short: "Copy what is known of the snapshots of every namespace",
		Long: `Backup snapshots writes the records of snapshotd to a file, as they are at one
moment, while snapshotd goes on. The files of snapshots are not in it. snapshotd
makes backups by itself too; this one is to be kept elsewhere.`,
		Example: `  gantryctl backup snapshots -f /mnt/snapshots.backup`,
	}))
	return c
}

// backupOf completes the command that copies the records of a daemon.
func (n *node) backupOf(daemon string, cmd *cobra.Command) *cobra.Command {
	var file string
	cmd.Args, cmd.Annotations = cobra.NoArgs, endless
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		if file == "" {
			return usage(c, errors.New("want --file, or - for standard output"))
		}
		return n.withDaemon(daemon, func(c *cobra.Command, o *operator) error {
			p := n.progress(c, "backup", false)
			defer p.end()
			write := func(w io.Writer) error { return o.keeper.Backup(c.Context(), &counted{w: w, p: p}) }
			if file == "-" {
				return write(c.OutOrStdout())
			}
			return writeWhole(file, write)
		})(c, nil)
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "write to `FILE`, or to standard output if that is -")
	return cmd
}

// writeWhole makes a file that is whole, or none, whatever happens.
func writeWhole(name string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := errors.Join(write(f), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func restoreCommand(n *node) *cobra.Command {
	c := &cobra.Command{
		Use: "restore", Short: "Put back the records of a daemon", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(n.restoreOf(suite.Contentd, &cobra.Command{
		Use:   "content -f FILE",
		Short: "Put back what was known of the blobs of every namespace",
		Long: `Restore content puts the records of a backup in the place of those that contentd
has, while it runs: all of them, or none if the backup is not whole. Before that
contentd backs up those that it has. Blobs of since then are kept, as far as
their files tell whose they are; records whose bytes are gone are removed.

Fields with -o json: records, changes (what, count).`,
		Example: `  gantryctl restore content -f /mnt/content.backup`,
	}), n.restoreOf(suite.Snapshotd, &cobra.Command{
		Use:   "snapshots -f FILE",
		Short: "Put back what was known of the snapshots of every namespace",
		Long: `Restore snapshots puts the records of a backup in the place of those that
snapshotd has, while it runs: all of them, or none if the backup is not whole.
Before that snapshotd backs up those that it has. Snapshots of since then are
kept, as far as their notes tell of them; records whose trees are gone are
removed.

Fields with -o json: records, changes (what, count).`,
		Example: `  gantryctl restore snapshots -f /mnt/snapshots.backup`,
	}))
	return c
}

// restoreOf completes the command that puts back the records of a daemon.
func (n *node) restoreOf(daemon string, cmd *cobra.Command) *cobra.Command {
	var file string
	cmd.Args, cmd.Annotations = cobra.NoArgs, endless
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		if file == "" {
			return usage(c, errors.New("want --file, or - for standard input"))
		}
		return n.withDaemon(daemon, func(c *cobra.Command, o *operator) error {
			in := c.InOrStdin()
			if file != "-" {
				f, err := os.Open(file)
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			p := n.progress(c, "restore", false)
			r, err := o.keeper.Restore(c.Context(), &counted{r: in, p: p})
			p.end()
			if err != nil {
				return fmt.Errorf("restore %s: %w", file, err)
			}
			return n.printRestored(c.OutOrStdout(), r)
		})(c, nil)
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "read `FILE`, or standard input if that is -")
	return cmd
}

// A restoredRow is what restore says.
type restoredRow struct {
	Records int64       `json:"records"`
	Changes []changeRow `json:"changes"`
}

type changeRow struct {
	What  string `json:"what"`
	Count int64  `json:"count"`
}

func (n *node) printRestored(out io.Writer, r backup.Report) error {
	row := restoredRow{Records: r.Records, Changes: []changeRow{}}
	for _, c := range r.Changes {
		row.Changes = append(row.Changes, changeRow(c))
	}
	if n.output == "json" {
		return show(out, n.output, nil, []restoredRow{row}, nil)
	}
	fmt.Fprintf(out, "records: %d\n", row.Records)
	for _, c := range row.Changes {
		fmt.Fprintf(out, "%s: %d\n", printable(c.What), c.Count)
	}
	return nil
}

// A counted is a stream of which the progress is told.
type counted struct {
	r io.Reader
	w io.Writer
	p *progress
	n int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.told(n)
	return n, err
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.told(n)
	return n, err
}

func (c *counted) told(n int) {
	c.n += int64(n)
	c.p.at(c.n, 0)
}
