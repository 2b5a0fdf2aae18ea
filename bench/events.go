package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
)

// eventOptions say how much is told, and to how many.
type eventOptions struct {
	rules
	calls       int           // of Publish per round
	publishers  int           // at once
	subscribers int           // of the deliveries
	many        int           // subscribers that are a lot
	told        int           // events per round that each subscriber is told
	exits       int           // of tasks, whose latency is taken
	idle        time.Duration // before memory is looked at
	image       string
}

// benchEvents publishes to and subscribes at containerd's event service and
// ours, by containerd's own client, and takes how long an exit of a task is on
// its way.
func benchEvents(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("bench events", flag.ContinueOnError)
	var o eventOptions
	var p places
	p.flags(fs)
	o.flags(fs, 7, "fail if the `work=ratio` of eventbus to containerd is above this, or gateway.work=ratio of the gateway to it, or memory=MiB; comma-separated")
	fs.IntVar(&o.calls, "calls", 1000, "`number` of events published in a round")
	fs.IntVar(&o.publishers, "publishers", 8, "`number` of publishers at once")
	fs.IntVar(&o.subscribers, "subscribers", 50, "`number` of subscribers that are told at once")
	fs.IntVar(&o.many, "many", 1000, "`number` of subscribers that are a lot")
	fs.IntVar(&o.told, "told", 1000, "`number` of events in a round that each subscriber is told")
	fs.IntVar(&o.exits, "exits", 200, "`number` of tasks whose exit is followed")
	fs.DurationVar(&o.idle, "idle", 30*time.Second, "`time` from the load to the look at idle memory")
	fs.StringVar(&o.image, "image", "../bin/demo.tar", "OCI archive `file` that has a /bin/true")
	if err := fs.Parse(args); err != nil {
		return err
	}
	ctd, gan, stop, err := p.start(ctx)
	if err != nil {
		return err
	}
	defer stop()
	b, err := openEvents(ctx, o, ctd, gan)
	if err != nil {
		return err
	}
	defer b.close()
	if err := b.run(ctx, out); err != nil {
		return err
	}
	if b.wants("exit") {
		if err := b.printExits(ctx, out, ctd, gan); err != nil {
			return err
		}
	}
	return errors.Join(b.broken...)
}

// An eventBench is the doors, containerd's first, and what came out.
type eventBench struct {
	eventOptions
	doors []*door
}

func openEvents(ctx context.Context, o eventOptions, ctd, gan *server) (*eventBench, error) {
	eventbus := func() (int, error) { return childOf(gan.cmd.Process.Pid, "eventbus") }
	b := &eventBench{eventOptions: o, doors: []*door{
		{name: "containerd", address: ctd.address, daemon: func() (int, error) { return ctd.cmd.Process.Pid, nil }},
		{name: "eventbus", address: filepath.Join(gan.state, "eventbus.sock"), daemon: eventbus},
		{name: "gateway", address: gan.address, daemon: eventbus},
	}}
	for i, d := range b.doors {
		var err error
		if d.client, err = containerd.New(d.address); err != nil {
			b.close()
			return nil, err
		}
		d.seed = uint64(i + 1)
		if err := d.publish(in(ctx, "bench"), "warm"); err != nil {
			b.close()
			return nil, fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return b, nil
}

func (b *eventBench) close() {
	for _, d := range b.doors {
		if d.client != nil {
			d.client.Close()
		}
	}
}

func (b *eventBench) works() []work {
	return []work{
		{"publish", "Publish, 1 publisher", b.publish1},
		{"publish8", fmt.Sprintf("Publish, %d publishers", b.publishers), b.publish8},
		{"deliver", fmt.Sprintf("an event told to %d subscribers", b.subscribers), b.deliver},
		{"many", fmt.Sprintf("an event told to %d subscribers", b.many), b.deliverMany},
	}
}

// run does every work in turn, and prints each when it is done.
func (b *eventBench) run(ctx context.Context, out io.Writer) error {
	fmt.Fprintf(out, "| medians of %d rounds | %s | eventbus | ratio | by the gateway | ratio |\n|---|--:|--:|--:|--:|--:|\n",
		b.rounds, "containerd "+containerdVersion)
	if b.wants("memory") {
		if err := b.printMemory(ctx, out, b.doors, b.idle, fmt.Sprintf("%v after the start", b.idle)); err != nil {
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
		own, public := took[1].ratio(took[0]), took[2].ratio(took[0])
		fmt.Fprintf(out, "| %s (%s) | %s | %s | %.2f | %s | %.2f |\n", w.what, w.name,
			show(median(took[0])), show(median(took[1])), own, show(median(took[2])), public)
		b.hold(w.name, own)
		b.hold("gateway."+w.name, public)
	}
	if b.wants("slow") {
		if err := b.printSlow(ctx, out); err != nil {
			return err
		}
	}
	if b.wants("disk") {
		if err := b.printDisk(out); err != nil {
			return err
		}
	}
	if b.wants("memory") {
		return b.printMemories(ctx, out, b.doors, b.idle)
	}
	return nil
}

// printDisk prints what a durable event cannot do without: bytes as many as an
// event's, in a file that has its size, and a sync.
func (b *eventBench) printDisk(out io.Writer) error {
	f, err := os.CreateTemp("", "gantry-bench-sync-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	const bytes = 400
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(b.calls*bytes)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	took, err := each(b.calls, 1, func(i int) error {
		if _, err := f.WriteAt(make([]byte, bytes), int64(i*bytes)); err != nil {
			return err
		}
		return syscall.Fdatasync(int(f.Fd()))
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "| %d bytes written and synced, by nobody's service (disk) | | %s | | | |\n", bytes, show(median(took)))
	return nil
}
