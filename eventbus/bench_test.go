package eventbus_test

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventrpc"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

// BenchmarkTold measures from the call of Publish to the moment when the last
// of the subscribers has the event, one event after the other.
func BenchmarkTold(b *testing.B) {
	for _, way := range []string{"engine", "grpc", "nats to grpc"} {
		for _, subscribers := range []int{1, 10} {
			b.Run(fmt.Sprintf("%s/subscribers=%d", way, subscribers), func(b *testing.B) {
				bus := open(b, config(b))
				var publisher, subscriber event.Bus = bus, bus
				if way != "engine" {
					subscriber = eventrpc.NewClient(rpctest.Pipe(b, func(r grpc.ServiceRegistrar) { eventrpc.Register(r, bus) }))
					publisher = subscriber
				}
				if way == "nats to grpc" {
					c := dial(b, bus.socket)
					eventually(b, "a connection", func() error {
						return c.Publish(b.Context(), event.New("first", at, event.ContainerDelete{ID: "c"}))
					})
					publisher = c
				}
				told(b, publisher, subscriber, subscribers)
			})
		}
	}
}

func told(b *testing.B, publisher, subscriber event.Bus, subscribers int) {
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	var nexts []func() (event.Event, error, bool)
	for range subscribers {
		events, err := subscriber.Subscribe(ctx, event.SubscribeOptions{})
		if err != nil {
			b.Fatal(err)
		}
		next, stop := iter.Pull2(events)
		defer stop()
		nexts = append(nexts, next)
	}
	var took, acked []time.Duration
	n := 0
	for b.Loop() {
		n++
		e := event.New("one", time.Now(), event.TaskExit{ContainerID: "c", ID: "c", ExitedAt: at})
		e.ID = fmt.Sprintf("bench/x/%d", n)
		began := time.Now()
		published := make(chan time.Duration, 1)
		go func() {
			if err := publisher.Publish(ctx, e); err != nil {
				b.Error(err)
			}
			published <- time.Since(began)
		}()
		for _, next := range nexts {
			if _, err, _ := next(); err != nil {
				b.Fatal(err)
			}
		}
		took = append(took, time.Since(began))
		acked = append(acked, <-published)
	}
	slices.Sort(took)
	slices.Sort(acked)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "told-p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "told-p99-µs")
	b.ReportMetric(float64(acked[len(acked)/2].Microseconds()), "acked-p50-µs")
}
