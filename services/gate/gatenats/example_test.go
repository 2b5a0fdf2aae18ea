package gatenats_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/gate/gatenats"
)

// A plugin that lets no container start that does not say whose it is. Its user
// and the gate are in eventbus.toml.
func ExampleServe() {
	bus, err := eventnats.Dial("/run/gantry/nats.sock")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer bus.Close()
	err = gatenats.Serve(context.Background(), bus.Conn(), "audit", gate.Func(func(_ context.Context, r gate.Request) error {
		if r.Labels["owner"] == "" {
			return errors.New("label owner is missing")
		}
		return nil
	}))
	fmt.Println(err)
}
