package busrpc_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/busrpc"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

type reporter event.Status

func (r reporter) Status(context.Context) (event.Status, error) { return event.Status(r), nil }

func TestStatusCrossesTheWire(t *testing.T) {
	at := time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC)
	for _, want := range []event.Status{
		{},
		{
			Stream: event.Stream{
				Epoch: "e", First: 3, Last: 1 << 63, Bytes: 5, BytesMax: 64 << 20, AgeMax: 72 * time.Hour, Oldest: at,
			},
			Readers: []event.Reader{
				{Plugin: "dnsd", Name: "names", Cursor: event.Cursor{Epoch: "e", Sequence: 7}, Lag: 9, Gaps: 1, Seen: at},
				{Plugin: "netd", Name: "never"},
			},
			Gates:       []event.Gate{{Name: "network", Plugins: []string{"netd", "operator"}, Present: true}, {Name: "other"}},
			Peers:       []event.Peer{{Name: "operator", Connections: 2, Subscriptions: 3, Pending: 4}},
			Connections: 2, ConnectionsMax: 1024,
		},
	} {
		c := busrpc.NewClient(rpctest.Pipe(t, func(s grpc.ServiceRegistrar) { busrpc.Register(s, reporter(want)) }))
		got, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("Status (-want +got):\n%s", d)
		}
	}
}
