package gaterpc_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/gate/gaterpc"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

// lobby is one, or the error of one.
type lobby struct {
	all []gate.Wait
	err error
}

func (l lobby) Waiting(context.Context) ([]gate.Wait, error) { return l.all, l.err }

func TestWaitsCrossTheWire(t *testing.T) {
	at := time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC)
	var many []gate.Wait
	for i := range 2500 {
		many = append(many, gate.Wait{Gate: "network", Namespace: "one", Container: fmt.Sprint("c", i), Since: at})
	}
	for _, want := range [][]gate.Wait{nil, many[:1], many} {
		c := gaterpc.NewClient(rpctest.Pipe(t, func(s grpc.ServiceRegistrar) { gaterpc.Register(s, lobby{all: want}) }))
		got, err := c.Waiting(t.Context())
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("Waiting: %v (-want +got):\n%s", err, d)
		}
	}
	c := gaterpc.NewClient(rpctest.Pipe(t, func(s grpc.ServiceRegistrar) { gaterpc.Register(s, lobby{err: errdefs.ErrUnavailable}) }))
	if _, err := c.Waiting(t.Context()); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Waiting: %v", err)
	}
}
