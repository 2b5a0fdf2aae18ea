package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	eventpb "github.com/containerd/containerd/api/events"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/events"
)

// connectionStreams is how many subscribers share a connection: an HTTP/2
// server has a limit, and clients have a connection each.
const connectionStreams = 50

// publish tells of an image whose name is what is to be said.
func (d *door) publish(ctx context.Context, name string) error {
	return d.client.EventService().Publish(ctx, "/images/create", &eventpb.ImageCreate{
		Name: name, Labels: map[string]string{"io.containerd.image": "managed"},
	})
}

func (b *eventBench) publish1(ctx context.Context, d *door, round int) (time.Duration, error) {
	return b.publishing(ctx, d, round, 1)
}

func (b *eventBench) publish8(ctx context.Context, d *door, round int) (time.Duration, error) {
	return b.publishing(ctx, d, round, b.publishers)
}

// publishing returns the median time of a Publish.
func (b *eventBench) publishing(ctx context.Context, d *door, round, publishers int) (time.Duration, error) {
	ctx = in(ctx, "bench")
	took, err := each(b.calls, publishers, func(i int) error {
		return d.publish(ctx, fmt.Sprintf("%s/%d/%d/%d", d.name, publishers, round, i))
	})
	if err != nil {
		return 0, err
	}
	return median(took), nil
}

func (b *eventBench) deliver(ctx context.Context, d *door, round int) (time.Duration, error) {
	return b.delivering(ctx, d, round, b.subscribers, b.told)
}

func (b *eventBench) deliverMany(ctx context.Context, d *door, round int) (time.Duration, error) {
	return b.delivering(ctx, d, round, b.many, max(b.told/20, 1))
}

// delivering returns how long it takes until n subscribers have all been told of
// events that publishers publish as fast as they can, by event.
func (b *eventBench) delivering(ctx context.Context, d *door, round, n, told int) (time.Duration, error) {
	ctx, cancel := context.WithCancel(in(ctx, "bench"))
	defer cancel()
	a, err := d.audience(ctx, n)
	if err != nil {
		return 0, err
	}
	defer a.close()
	name := func(i int) string { return fmt.Sprintf("%s/told/%d/%d/%d", d.name, n, round, i) }
	start := time.Now()
	a.expect(told)
	if _, err := each(told, b.publishers, func(i int) error { return d.publish(ctx, name(i)) }); err != nil {
		return 0, err
	}
	if err := a.wait(ctx); err != nil {
		return 0, err
	}
	return time.Since(start) / time.Duration(told), nil
}

// An audience is many subscribers of one door.
type audience struct {
	clients []*containerd.Client
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	begun   atomic.Int64 // subscribers that were told anything
	want    atomic.Int64 // events for each, 0 while they gather
	full    atomic.Int64 // subscribers that were told all
	n       int
	failed  chan error
}

// audience subscribes n times. When it returns each subscriber was told of
// something: containerd does not say when a subscription is in force.
func (d *door) audience(ctx context.Context, n int) (*audience, error) {
	a := &audience{n: n, failed: make(chan error, 1)}
	ctx, a.cancel = context.WithCancel(ctx)
	for i := range n {
		if i%connectionStreams == 0 {
			c, err := containerd.New(d.address)
			if err != nil {
				a.close()
				return nil, err
			}
			a.clients = append(a.clients, c)
		}
		told, failed := a.clients[len(a.clients)-1].EventService().Subscribe(ctx, `topic=="/images/create"`)
		a.wg.Go(func() { a.listen(ctx, told, failed) })
	}
	for i := 0; a.begun.Load() < int64(n); i++ {
		if err := d.publish(ctx, fmt.Sprintf("%s/begin/%d/%d", d.name, time.Now().UnixNano(), i)); err != nil {
			a.close()
			return nil, err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case err := <-a.failed:
			a.close()
			return nil, err
		}
	}
	// Whoever is behind with the events that only gathered them.
	select {
	case <-time.After(300 * time.Millisecond):
	case <-ctx.Done():
		a.close()
		return nil, ctx.Err()
	}
	return a, nil
}

func (a *audience) listen(ctx context.Context, told <-chan *events.Envelope, failed <-chan error) {
	counted := int64(0)
	for first := true; ; first = false {
		select {
		case <-told:
		case err := <-failed:
			if ctx.Err() == nil {
				select {
				case a.failed <- fmt.Errorf("a subscription ended: %w", err):
				default:
				}
			}
			return
		}
		if first {
			a.begun.Add(1)
		}
		if want := a.want.Load(); want > 0 {
			if counted++; counted == want {
				a.full.Add(1)
			}
		}
	}
}

// expect begins to count.
func (a *audience) expect(told int) { a.want.Store(int64(told)) }

// wait returns when all were told all.
func (a *audience) wait(ctx context.Context) error {
	deadline := time.After(2 * time.Minute)
	for a.full.Load() < int64(a.n) {
		select {
		case err := <-a.failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline:
			return fmt.Errorf("%d of %d subscribers were told all in two minutes", a.full.Load(), a.n)
		case <-time.After(200 * time.Microsecond):
		}
	}
	return nil
}

func (a *audience) close() {
	a.cancel()
	a.wg.Wait()
	for _, c := range a.clients {
		c.Close()
	}
}

// printSlow prints what daemons have while subscribers do not read what they are
// told.
func (b *eventBench) printSlow(ctx context.Context, out io.Writer) error {
	const told = 20_000
	var mib [2]float64
	for i, d := range b.doors[:2] {
		ctx, cancel := context.WithCancel(in(ctx, "bench"))
		defer cancel()
		var clients []*containerd.Client
		for i := range b.many {
			if i%connectionStreams == 0 {
				c, err := containerd.New(d.address)
				if err != nil {
					return err
				}
				defer c.Close()
				clients = append(clients, c)
			}
			clients[len(clients)-1].EventService().Subscribe(ctx)
		}
		if _, err := each(told, b.publishers, func(i int) error { return d.publish(ctx, fmt.Sprintf("%s/slow/%d", d.name, i)) }); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		pid, err := d.daemon()
		if err != nil {
			return err
		}
		if mib[i], err = pss(pid); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "| Memory (PSS) when %d subscribers read nothing of %d events (slow) | %.1f MiB | %.1f MiB | %.2f | | |\n",
		b.many, told, mib[0], mib[1], mib[1]/mib[0])
	return nil
}
