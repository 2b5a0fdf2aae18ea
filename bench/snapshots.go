package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

func namespaceOf(ctx context.Context) string {
	name, _ := namespaces.Namespace(ctx)
	return name
}

const baseName = "base" // of the snapshot that others are made on

// runSnapshots prints how long calls on snapshots take.
func (b *unpackBench) runSnapshots(ctx context.Context, out io.Writer) error {
	works := []work{
		{"prepare", "Prepare", b.prepares},
		{"commit", "Commit", b.commits},
		{"remove", "Remove", b.removes},
		{"list", fmt.Sprintf("List of %d snapshots", b.snapshots), b.list},
	}
	fmt.Fprintf(out, "\n| medians of %d rounds | %s | snapshotd | ratio | by the gateway | ratio |\n|---|--:|--:|--:|--:|--:|\n",
		b.rounds, "containerd "+containerdVersion)
	for _, d := range b.direct[:2] {
		for _, ns := range []string{"calls", "many"} {
			if err := d.base(in(ctx, ns)); err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
		}
		if !b.wants("list") {
			continue
		}
		if _, err := each(b.snapshots, b.makers, func(i int) error {
			_, err := d.snapshots().Prepare(in(ctx, "many"), fmt.Sprintf("snapshot-%d", i), baseName, rootedSnapshot)
			return err
		}); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	for _, w := range works {
		if !b.wants(w.name) {
			continue
		}
		took, err := b.measure(ctx, w, b.direct)
		if err != nil {
			return err
		}
		alone, public := took[1].ratio(took[0]), took[2].ratio(took[0])
		fmt.Fprintf(out, "| %s (%s) | %s | %s | %.2f | %s | %.2f |\n", w.what, w.name,
			show(median(took[0])), show(median(took[1])), alone, show(median(took[2])), public)
		b.hold(w.name, alone)
		b.hold("gateway."+w.name, public)
	}
	return nil
}

func (d *door) snapshots() snapshots.Snapshotter { return d.client.SnapshotService(snapshotter) }

// rootedSnapshot keeps a snapshot from the garbage collector.
var rootedSnapshot = snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "bench"})

func (d *door) base(ctx context.Context) error {
	if _, err := d.snapshots().Prepare(ctx, "base-key", "", rootedSnapshot); err != nil {
		return err
	}
	return d.snapshots().Commit(ctx, baseName, "base-key", rootedSnapshot)
}

// prepares returns the median time of a Prepare.
func (b *unpackBench) prepares(ctx context.Context, d *door, round int) (time.Duration, error) {
	return b.times(ctx, d, round, d.prepare, d.remove)
}

func (b *unpackBench) commits(ctx context.Context, d *door, round int) (time.Duration, error) {
	if _, err := b.times(ctx, d, round, d.prepare); err != nil {
		return 0, err
	}
	return b.times(ctx, d, round, func(ctx context.Context, key string) error {
		return d.snapshots().Commit(ctx, key+"-done", key, rootedSnapshot)
	}, func(ctx context.Context, key string) error { return d.remove(ctx, key+"-done") })
}

func (b *unpackBench) removes(ctx context.Context, d *door, round int) (time.Duration, error) {
	if _, err := b.times(ctx, d, round, d.prepare); err != nil {
		return 0, err
	}
	return b.times(ctx, d, round, d.remove)
}

func (d *door) prepare(ctx context.Context, key string) error {
	_, err := d.snapshots().Prepare(ctx, key, baseName, rootedSnapshot)
	return err
}

func (d *door) remove(ctx context.Context, key string) error { return d.snapshots().Remove(ctx, key) }

// times calls do for one key after the other, and returns the median time of a
// call; then it calls after for each.
func (b *unpackBench) times(ctx context.Context, d *door, round int, do func(context.Context, string) error, after ...func(context.Context, string) error) (time.Duration, error) {
	ctx = in(ctx, "calls")
	key := func(i int) string { return fmt.Sprintf("%s-%d-%d", d.name, round, i) }
	took, err := each(b.calls, 1, func(i int) error { return do(ctx, key(i)) })
	if err != nil {
		return 0, err
	}
	for _, a := range after {
		if _, err := each(b.calls, b.makers, func(i int) error { return a(ctx, key(i)) }); err != nil {
			return 0, err
		}
	}
	return median(took), nil
}

func (b *unpackBench) list(ctx context.Context, d *door, _ int) (time.Duration, error) {
	n := 0
	start := time.Now()
	err := d.snapshots().Walk(in(ctx, "many"), func(context.Context, snapshots.Info) error { n++; return nil })
	took := time.Since(start)
	if err == nil && n != b.snapshots+1 {
		err = fmt.Errorf("%d snapshots", n)
	}
	return took, err
}
