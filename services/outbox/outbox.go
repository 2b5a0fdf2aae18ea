// Package outbox keeps events in the transaction of the change they report, and
// publishes them afterwards, in order, until the bus has each.
package outbox

import (
	"context"
	"errors"
	"log/slog"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/kv"
)

// A Box is the outbox of one daemon.
type Box struct{}

// Open returns the outbox in db of the named daemon.
func Open(db *kv.DB, daemon string, log *slog.Logger) (*Box, error) {
	return nil, errors.New("outbox: not written")
}

// Add puts e into the outbox as part of tx and gives it its id. The trace
// context is taken from ctx.
func (b *Box) Add(ctx context.Context, tx *kv.Tx, e event.Event) error { return nil }

// Publish hands events to to, in order, until ctx ends. It is a work of
// [daemon.Serve].
func (b *Box) Publish(ctx context.Context, to event.Publisher) error { return nil }
