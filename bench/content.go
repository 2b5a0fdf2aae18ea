package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/content/contentrpc"
)

// contentOptions say how much is done.
type contentOptions struct {
	rules
	blobs   int           // that are there to be asked for and listed
	small   int           // written per round
	writers int           // at once
	calls   int           // of Info per round
	large   int64         // bytes
	idle    time.Duration // before memory is looked at
}

// benchContent does the same to containerd's content store and to contentd's,
// the latter also through the gateway, which is what clients dial.
func benchContent(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("bench content", flag.ContinueOnError)
	var o contentOptions
	var p places
	p.flags(fs)
	mib := fs.Int64("large", 512, "size of the large blob in `MiB`")
	o.flags(fs, 7, "fail if the `work=ratio` of contentd to containerd is above this, or gateway.work=ratio of the gateway to it, or memory=MiB; comma-separated")
	fs.IntVar(&o.blobs, "blobs", 10000, "`number` of blobs that are listed")
	fs.IntVar(&o.small, "small", 400, "`number` of small blobs that a round writes")
	fs.IntVar(&o.writers, "writers", 8, "`number` of writers, and of callers of Info, at once")
	fs.IntVar(&o.calls, "calls", 2000, "`number` of calls of Info in a round")
	fs.DurationVar(&o.idle, "idle", 30*time.Second, "`time` from the load to the look at idle memory")
	if err := fs.Parse(args); err != nil {
		return err
	}
	o.large = *mib << 20
	ctd, gan, stop, err := p.start(ctx)
	if err != nil {
		return err
	}
	defer stop()
	b, err := openDoors(ctx, o, ctd, gan)
	if err != nil {
		return err
	}
	defer b.close()
	if err := b.run(ctx, out); err != nil {
		return err
	}
	return errors.Join(b.broken...)
}

// A door is a socket by which a content store is reached.
type door struct {
	name    string
	address string
	client  *containerd.Client
	store   content.Store
	own     *client.Client      // gantry's, which asks for handles; nil of containerd
	files   *contentrpc.Handles // the handles themselves
	seed    uint64              // no other door's
	daemon  func() (int, error) // the process that keeps the blobs
}

// A contentBench is the doors, containerd's first, and what came out.
type contentBench struct {
	contentOptions
	doors       []*door
	digests     []digest.Digest // that every store has
	largeDigest digest.Digest
}

func openDoors(ctx context.Context, o contentOptions, ctd, gan *server) (*contentBench, error) {
	contentd := func() (int, error) { return childOf(gan.cmd.Process.Pid, "contentd") }
	b := &contentBench{contentOptions: o, doors: []*door{
		{name: "containerd", daemon: func() (int, error) { return ctd.cmd.Process.Pid, nil }},
		{name: "contentd", daemon: contentd},
		{name: "gateway", daemon: contentd},
	}}
	own, err := client.Dial(gan.address)
	if err != nil {
		return nil, err
	}
	b.doors[1].own = own
	b.doors[1].files = contentrpc.HandlesAt(filepath.Join(gan.state, "contentd.blobs.sock"))
	addresses := []string{ctd.address, filepath.Join(gan.state, "contentd.sock"), gan.address}
	for i, d := range b.doors {
		var err error
		if d.client, err = containerd.New(addresses[i]); err != nil {
			b.close()
			return nil, err
		}
		d.store, d.seed = d.client.ContentStore(), uint64(i+1)
		if _, err := d.store.ListStatuses(in(ctx, "warm")); err != nil {
			b.close()
			return nil, fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return b, nil
}

func (b *contentBench) close() {
	for _, d := range b.doors {
		if d.client != nil {
			d.client.Close()
		}
		if d.own != nil {
			d.own.Close()
			d.files.Close()
		}
	}
}

func (b *contentBench) works() []work {
	return []work{
		{"small", fmt.Sprintf("4 KiB blob written, %d writers", b.writers), b.small8},
		{"small1", "4 KiB blob written, 1 writer", b.small1},
		{"ingest", fmt.Sprintf("%d MiB written", b.large>>20), b.ingest},
		{"read", fmt.Sprintf("%d MiB read by Read", b.large>>20), b.read},
		{"info", fmt.Sprintf("Info, 1 caller, %d blobs", b.blobs), b.info1},
		{"info8", fmt.Sprintf("Info, %d callers, %d blobs", b.writers, b.blobs), b.info8},
		{"list", fmt.Sprintf("List of %d blobs", b.blobs), b.list},
	}
}

// run does every work in turn, and prints each when it is done.
func (b *contentBench) run(ctx context.Context, out io.Writer) error {
	if err := b.prepare(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "| medians of %d rounds | %s | contentd | ratio | by the gateway | ratio |\n|---|--:|--:|--:|--:|--:|\n",
		b.rounds, "containerd "+containerdVersion)
	if b.wants("memory") {
		if err := b.printMemory(ctx, out, b.doors, b.idle, fmt.Sprintf("%v after %d blobs were written", b.idle, b.blobs)); err != nil {
			return err
		}
	}
	for _, w := range b.works() {
		if !b.wants(w.name) {
			continue
		}
		took, err := b.measure(ctx, w, b.doors)
		if err != nil {
			return err
		}
		direct, public := took[1].ratio(took[0]), took[2].ratio(took[0])
		fmt.Fprintf(out, "| %s (%s) | %s | %s | %.2f | %s | %.2f |\n", w.what, w.name,
			show(median(took[0])), show(median(took[1])), direct, show(median(took[2])), public)
		b.hold(w.name, direct)
		b.hold("gateway."+w.name, public)
	}
	if err := b.printHandles(ctx, out); err != nil {
		return err
	}
	if b.wants("sync") {
		if err := b.printSyncs(ctx, out); err != nil {
			return err
		}
	}
	if b.wants("memory") {
		return b.printMemories(ctx, out, b.doors, b.idle)
	}
	return nil
}
