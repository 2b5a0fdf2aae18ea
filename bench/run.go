package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// benchRun runs /bin/true through the ctr of containerd on both, and through
// gantryctl.
func benchRun(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("bench run", flag.ContinueOnError)
	n := fs.Int("n", 40, "counted `runs` of each")
	warm := fs.Int("warmup", 5, "`runs` of each that do not count")
	image := fs.String("image", "../bin/demo.tar", "OCI archive `file` that has a /bin/true")
	name := fs.String("name", "demo:latest", "`name` the archive gives the image")
	most := fs.Float64("most", 0, "fail if the ratio of ctr on gantry to ctr on containerd is above this; 0 is no limit")
	var p places
	p.flags(fs)
	if err := fs.Parse(args); err != nil {
		return err
	}
	ctd, gan, stop, err := p.start(ctx)
	if err != nil {
		return err
	}
	defer stop()

	ctr := filepath.Join(p.cache, "ctr")
	ctl := filepath.Join(p.bin, "gantryctl")
	if err := quiet(ctx, ctr, "-a", ctd.address, "images", "import", "--local", *image); err != nil {
		return err
	}
	if err := quiet(ctx, ctr, "-a", gan.address, "images", "import", "--local", *image); err != nil {
		return err
	}
	ref, err := output(ctx, ctr, "-a", ctd.address, "images", "ls", "-q")
	if err != nil {
		return err
	}
	if f := strings.Fields(ref); len(f) == 1 {
		*name = f[0]
	}

	id := 0
	ctrRun := func(address string) func(context.Context) error {
		return func(ctx context.Context) error {
			id++
			return quiet(ctx, ctr, "-a", address, "run", "--rm", *name, fmt.Sprintf("bench-%d", id), "/bin/true")
		}
	}
	rows := []*row{
		{name: "ctr run, containerd " + containerdVersion, do: ctrRun(ctd.address)},
		{name: "ctr run, gantry", do: ctrRun(gan.address)},
		{name: "gantryctl run, gantry", do: func(ctx context.Context) error {
			return quiet(ctx, ctl, "--address", gan.address, "run", "--rm", *name, "/bin/true")
		}},
	}
	for i := range *warm + *n {
		for _, r := range rows {
			start := time.Now()
			if err := r.do(ctx); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			if i >= *warm {
				r.took = append(r.took, time.Since(start))
			}
		}
	}
	printRuns(out, rows)
	if ratio := rows[1].took.ratio(rows[0].took); *most > 0 && ratio > *most {
		return fmt.Errorf("ratio %.2f is above %.2f", ratio, *most)
	}
	return nil
}

// A row is one way to run a container.
type row struct {
	name string
	do   func(context.Context) error
	took series
}

func printRuns(out io.Writer, rows []*row) {
	fmt.Fprintf(out, "%-28s %10s %10s %10s %8s\n", "run of /bin/true, serial", "min ms", "median ms", "max ms", "ratio")
	for _, r := range rows {
		fmt.Fprintf(out, "%-28s %10.1f %10.1f %10.1f %8.2f\n", r.name,
			ms(slices.Min(r.took)), ms(median(r.took)), ms(slices.Max(r.took)), r.took.ratio(rows[0].took))
	}
}

func quiet(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, name, args...)
	return err
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var stdout, stderr strings.Builder
	c := exec.CommandContext(ctx, name, args...)
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
