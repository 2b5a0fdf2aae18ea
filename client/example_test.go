package client_test

import (
	"context"
	"fmt"
	"log"
	"os/signal"
	"syscall"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/event"
)

// A plugin that tells of every task that starts or ends, also of those that did
// while it was not running.
func ExampleBus_Subscribe() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	bus, err := client.DialBus("/run/gantry/nats.sock")
	if err != nil {
		log.Fatal(err)
	}
	defer bus.Close()
	err = bus.Subscribe(ctx, client.Subscription{
		Name:     "audit",
		Cursor:   "/var/lib/audit/cursor",
		Subjects: []string{"gantry.v1.*.tasks.start", "gantry.v1.*.tasks.exit"},
		Handle: func(ctx context.Context, e event.Event) error {
			_, err := fmt.Println(e.Time, e.Namespace, e.Topic, e.Subject, string(e.JSON))
			return err
		},
		Relist: func(ctx context.Context, lost *event.Gap) error {
			if lost != nil {
				fmt.Println("events are missing here:", lost)
			}
			return nil
		},
	})
	if ctx.Err() == nil {
		log.Fatal(err)
	}
}
