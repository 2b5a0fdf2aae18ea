package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"

	"github.com/gantryd/gantry/client"
)

const snapshotter = "overlayfs" // both have it

// unpackOptions say how much is done.
type unpackOptions struct {
	rules
	megabytes int // of the large layer, packed
	files     int // in it
	layers    int
	small     int // files in each of the layers
	snapshots int // that are listed
	calls     int // of Prepare, Commit and Remove per round
	makers    int // of the snapshots that are listed, at once
	idle      time.Duration
}

// benchUnpack unpacks the same images on both, and makes, commits, removes and
// lists snapshots.
func benchUnpack(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("bench unpack", flag.ContinueOnError)
	var o unpackOptions
	var p places
	p.flags(fs)
	o.flags(fs, 5, "fail if the `work=ratio` of gantry to containerd is above this, or client.work=ratio of gantry's own client, or gateway.work=ratio of the gateway, or memory=MiB; comma-separated")
	fs.IntVar(&o.megabytes, "mb", 130, "about the size of the large layer, packed, in `MB`")
	fs.IntVar(&o.files, "files", 9000, "`number` of files in it")
	fs.IntVar(&o.layers, "layers", 21, "`number` of small layers")
	fs.IntVar(&o.small, "small", 1000, "`number` of files in each of them")
	fs.IntVar(&o.snapshots, "snapshots", 10000, "`number` of snapshots that are listed")
	fs.IntVar(&o.calls, "calls", 200, "`number` of calls of Prepare, Commit and Remove in a round")
	fs.DurationVar(&o.idle, "idle", 30*time.Second, "`time` from the load to the look at idle memory")
	quick := fs.Bool("quick", false, "a tenth of everything, to see that it works")
	if err := fs.Parse(args); err != nil {
		return err
	}
	o.makers = 16
	if *quick {
		for _, n := range []*int{&o.megabytes, &o.files, &o.layers, &o.small, &o.snapshots, &o.calls} {
			*n = max(*n/10, 2)
		}
		o.idle /= 10
	}
	ctd, gan, stop, err := p.start(ctx)
	if err != nil {
		return err
	}
	defer stop()
	b := &unpackBench{unpackOptions: o}
	defer b.close()
	if err := b.open(ctd, gan); err != nil {
		return err
	}
	if err := b.run(ctx, out); err != nil {
		return err
	}
	return errors.Join(b.broken...)
}

// An unpackBench is the ways to the daemons, containerd's first.
type unpackBench struct {
	unpackOptions
	public []*door // by containerd's client; gantry's last, by its own
	direct []*door // containerd, snapshotd, and that by the gateway
}

func (b *unpackBench) open(ctd, gan *server) error {
	snapshotd := func() (int, error) { return childOf(gan.cmd.Process.Pid, "snapshotd") }
	b.public = []*door{
		{name: "containerd", daemon: func() (int, error) { return ctd.cmd.Process.Pid, nil }},
		{name: "gantry", daemon: snapshotd},
		{name: "gantry's client", daemon: snapshotd},
	}
	alone := &door{name: "snapshotd", daemon: snapshotd}
	addresses := []string{ctd.address, gan.address, gan.address, filepath.Join(gan.state, "snapshotd.sock")}
	for i, d := range append(b.public, alone) {
		var err error
		if d.client, err = containerd.New(addresses[i]); err != nil {
			return err
		}
		d.store = d.client.ContentStore()
	}
	b.direct = []*door{b.public[0], alone, b.public[1]}
	var err error
	b.public[2].own, err = client.Dial(gan.address)
	return err
}

func (b *unpackBench) close() {
	for _, d := range append(b.public, b.direct[1:2]...) {
		if d.client != nil {
			d.client.Close()
		}
		if d.own != nil {
			d.own.Close()
		}
	}
}

func (b *unpackBench) run(ctx context.Context, out io.Writer) error {
	if err := b.runUnpacks(ctx, out); err != nil {
		return err
	}
	if err := b.runSnapshots(ctx, out); err != nil {
		return err
	}
	if !b.wants("memory") {
		return nil
	}
	fmt.Fprintf(out, "\n| | containerd %s | snapshotd | ratio | | |\n|---|--:|--:|--:|--:|--:|\n", containerdVersion)
	return b.printMemories(ctx, out, b.direct, b.idle)
}

// runUnpacks prints how long images take.
func (b *unpackBench) runUnpacks(ctx context.Context, out io.Writer) error {
	fmt.Fprintf(out, "| medians of %d rounds | %s | gantry, by containerd's client | ratio | by its own | ratio |\n|---|--:|--:|--:|--:|--:|\n",
		b.rounds, "containerd "+containerdVersion)
	for _, w := range []struct {
		name, what string
		make       func() (*ociImage, error)
	}{
		{"layer", fmt.Sprintf("one layer of %d files unpacked", b.files), b.large},
		{"layers", fmt.Sprintf("%d layers of %d small files unpacked", b.layers, b.small), b.many},
	} {
		if !b.wants(w.name) {
			continue
		}
		m, err := w.make()
		if err != nil {
			return err
		}
		took, err := b.measure(ctx, work{w.name, w.what, func(ctx context.Context, d *door, round int) (time.Duration, error) {
			return m.unpack(in(ctx, fmt.Sprintf("%s-%d", w.name, round)), d, w.name)
		}}, b.public)
		if err != nil {
			return err
		}
		api, own := took[1].ratio(took[0]), took[2].ratio(took[0])
		fmt.Fprintf(out, "| %s, %d MB of gzip, %d MB of files (%s) | %s | %s | %.2f | %s | %.2f |\n", w.what, m.size()/1e6, m.unpacked/1e6, w.name,
			show(median(took[0])), show(median(took[1])), api, show(median(took[2])), own)
		b.hold(w.name, api)
		b.hold("client."+w.name, own)
	}
	return nil
}

func (b *unpackBench) large() (*ociImage, error) {
	m := new(ociImage)
	archive, err := largeLayer(b.megabytes, b.files)
	if err != nil {
		return nil, err
	}
	return m, errors.Join(m.layer(archive), m.finish())
}

func (b *unpackBench) many() (*ociImage, error) {
	m := new(ociImage)
	for i := range b.layers {
		archive, err := smallLayer(i, b.small)
		if err != nil {
			return nil, err
		}
		if err := m.layer(archive); err != nil {
			return nil, err
		}
	}
	return m, m.finish()
}

// unpack unpacks the image in a namespace of its own, where nothing of it is
// unpacked. What earlier rounds have made stays till the end: file systems are
// slow where something large was removed a moment ago.
func (m *ociImage) unpack(ctx context.Context, d *door, name string) (time.Duration, error) {
	if d.own != nil {
		ctx = in(ctx, namespaceOf(ctx)+"-own")
	}
	img, err := m.put(ctx, d, name)
	if err != nil {
		return 0, err
	}
	// What others have written is not to be paid for by who syncs next.
	syscall.Sync()
	start := time.Now()
	if d.own == nil {
		err = containerd.NewImage(d.client, img).Unpack(ctx, snapshotter)
		return time.Since(start), err
	}
	n := d.own.In(namespaceOf(ctx))
	r, err := n.Resolve(ctx, img.Target)
	if err == nil {
		_, err = n.Unpack(ctx, r, snapshotter)
	}
	return time.Since(start), err
}
