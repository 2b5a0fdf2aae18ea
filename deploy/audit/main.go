// Audit is a plugin in a page, to begin one from: it writes a line for every
// task that starts or ends, also of those that did while it was not running.
//
//	audit /run/gantry/nats.sock /var/lib/audit
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/daemon"
	"github.com/gantryd/gantry/services/event"
)

func main() { daemon.Main("audit", os.Args[1:], run) }

func run(ctx context.Context, log *slog.Logger, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: audit SOCKET DIRECTORY")
	}
	bus, err := client.DialBus(args[0])
	if err != nil {
		return err
	}
	defer bus.Close()
	return bus.Subscribe(ctx, client.Subscription{
		Name:     "audit",
		Cursor:   filepath.Join(args[1], "cursor"),
		Subjects: []string{"gantry.v1.*.tasks.start", "gantry.v1.*.tasks.exit"},
		Handle: func(_ context.Context, e event.Event) error {
			_, err := fmt.Fprintln(os.Stdout, e.Time, e.Namespace, e.Topic, e.Subject, string(e.JSON))
			return err
		},
		Relist: func(_ context.Context, lost *event.Gap) error {
			if lost != nil { // one that knows what runs would list it now
				log.Warn("events are missing", "err", lost)
			}
			return nil
		},
		Retry: func(err error) { log.Warn("it is tried again", "err", err) },
	})
}
