package client

import (
	"context"

	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/gate/gatenats"
)

// Gate has g answer for the gate of that name until ctx ends. While the bus is
// away nobody is asked, and it goes on when the bus is back.
func (b *Bus) Gate(ctx context.Context, name string, g gate.Gate) error {
	return gatenats.Serve(ctx, b.nats.Conn(), name, g)
}
