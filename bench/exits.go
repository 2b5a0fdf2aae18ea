package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	eventpb "github.com/containerd/containerd/api/events"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/typeurl/v2"
	"github.com/nats-io/nats.go"
)

// printExits prints how long it takes from a task's exit, as the exit's record
// has it, to who subscribed to it.
func (b *eventBench) printExits(ctx context.Context, out io.Writer, ctd, gan *server) error {
	fmt.Fprintf(out, "\n| from a task's exit to a subscriber, %d tasks | median | p99 | not told |\n|---|--:|--:|--:|\n", b.exits)
	for _, s := range []struct {
		name string
		on   *server
		by   func(context.Context, *server) (<-chan time.Duration, error)
	}{
		{"containerd " + containerdVersion + ", Subscribe", ctd, exitsByGRPC},
		{"gantry, Subscribe by the gateway", gan, exitsByGRPC},
		{"gantry, NATS", gan, exitsByNATS},
	} {
		took, err := b.exitsOf(ctx, s.on, s.by)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		sorted := slices.Sorted(slices.Values(took))
		if len(sorted) == 0 {
			return fmt.Errorf("%s: nobody was told of an exit", s.name)
		}
		fmt.Fprintf(out, "| %s | %s | %s | %d |\n", s.name, show(median(sorted)), show(sorted[len(sorted)*99/100]), b.exits-len(took))
	}
	return nil
}

// exitsOf runs /bin/true, one task after the other, and returns how long each
// exit was on its way.
func (b *eventBench) exitsOf(ctx context.Context, on *server, by func(context.Context, *server) (<-chan time.Duration, error)) (series, error) {
	ctx, cancel := context.WithCancel(in(ctx, "bench"))
	defer cancel()
	c, err := containerd.New(on.address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	k, err := b.truth(ctx, c)
	if err != nil {
		return nil, err
	}
	defer func() { _ = k.Delete(context.WithoutCancel(ctx), containerd.WithSnapshotCleanup) }()
	exits, err := by(ctx, on)
	if err != nil {
		return nil, err
	}
	var took series
	for range b.exits {
		if err := runTask(ctx, k); err != nil {
			return nil, err
		}
		select {
		case d := <-exits:
			took = append(took, d)
		case <-time.After(3 * time.Second): // never, then
		}
	}
	return took, nil
}

// truth makes a container that runs /bin/true.
func (b *eventBench) truth(ctx context.Context, c *containerd.Client) (containerd.Container, error) {
	f, err := os.Open(b.image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	images, err := c.Import(ctx, f)
	if err != nil {
		return nil, err
	}
	img := containerd.NewImage(c, images[0])
	if err := img.Unpack(ctx, ""); err != nil {
		return nil, err
	}
	id := fmt.Sprintf("truth-%d", time.Now().UnixNano())
	return c.NewContainer(ctx, id, containerd.WithNewSnapshot(id, img),
		containerd.WithNewSpec(oci.WithImageConfig(img), oci.WithProcessArgs("/bin/true")))
}

func runTask(ctx context.Context, k containerd.Container) error {
	t, err := k.NewTask(ctx, cio.NullIO)
	if err != nil {
		return err
	}
	ended, err := t.Wait(ctx)
	if err != nil {
		return err
	}
	if err := t.Start(ctx); err != nil {
		return err
	}
	<-ended
	_, err = t.Delete(ctx)
	return err
}

// exitsByGRPC follows the exits by containerd's client.
func exitsByGRPC(ctx context.Context, on *server) (<-chan time.Duration, error) {
	c, err := containerd.New(on.address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { c.Close() })
	told, _ := c.EventService().Subscribe(ctx, `topic=="/tasks/exit"`)
	exits := make(chan time.Duration, 16)
	go func() {
		for {
			select {
			case e := <-told:
				now := time.Now()
				v, err := typeurl.UnmarshalAny(e.Event)
				if exit, ok := v.(*eventpb.TaskExit); err == nil && ok {
					exits <- now.Sub(exit.ExitedAt.AsTime())
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	// containerd does not say when the subscription is in force.
	<-time.After(200 * time.Millisecond)
	return exits, nil
}

type dialer string

func (d dialer) Dial(string, string) (net.Conn, error) { return net.Dial("unix", string(d)) }

// exitsByNATS follows them as a plugin in any language does.
func exitsByNATS(ctx context.Context, on *server) (<-chan time.Duration, error) {
	nc, err := nats.Connect("nats://gantry", nats.SetCustomDialer(dialer(filepath.Join(on.state, "nats.sock"))))
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, nc.Close)
	exits := make(chan time.Duration, 16)
	if _, err := nc.Subscribe("gantry.v1.bench.tasks.exit", func(m *nats.Msg) {
		now := time.Now()
		var exit struct {
			ExitedAt time.Time `json:"exited_at"`
		}
		if json.Unmarshal(m.Data, &exit) == nil {
			exits <- now.Sub(exit.ExitedAt)
		}
	}); err != nil {
		return nil, err
	}
	return exits, nc.Flush()
}
