package eventbus

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/gate/gatenats"
)

func TestStatus(t *testing.T) {
	socket, b := openWith(t, twoPlugins(t), func(*Bus) {})
	st, err := b.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s := st.Stream; s.Epoch == "" || s.Kept() != 0 || s.Last != 0 || !s.Oldest.IsZero() || s.BytesMax != 64<<20 || s.AgeMax != 72*time.Hour {
		t.Errorf("an empty stream is %+v", s)
	}
	began := time.Now().Add(-time.Second)
	for range 3 {
		if err := b.Publish(t.Context(), event.New("one", time.Now(), event.ContainerDelete{ID: "c"})); err != nil {
			t.Fatal(err)
		}
	}
	network, root := connectAs(t, socket, uidNet), connectAs(t, socket, 0)
	answer := func(*nats.Msg) {}
	for _, s := range []struct {
		c       client
		subject string
	}{
		{network, gatenats.Subject("network")}, {network, "gantry.v1.*.tasks.>"},
		{root, gatenats.Subject("a.b")}, {root, gatenats.Subject("network")},
		{root, "gantry.v1.gate.*"}, {root, "gantry.v1.gate.>"}, {root, "gantry.v1.gate.x.y"},
	} {
		if _, err := s.c.QueueSubscribe(s.subject, "gate", answer); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []client{network, root} {
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	st, err = b.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s := st.Stream; s.First != 1 || s.Last != 3 || s.Kept() != 3 || s.Bytes == 0 || s.Oldest.Before(began) {
		t.Errorf("the stream is %+v", s)
	}
	if d := cmp.Diff([]event.Gate{
		{Name: "a.b", Plugins: []string{"operator"}, Present: true},
		{Name: "mesh", Plugins: []string{"net"}},
		{Name: "names", Plugins: []string{"names"}},
		{Name: "network", Plugins: []string{"net", "operator"}, Present: true},
	}, st.Gates); d != "" {
		t.Errorf("gates (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]event.Peer{
		{Name: "names"}, {Name: "net", Connections: 1, Subscriptions: 2}, {Name: "operator", Connections: 1, Subscriptions: 5},
	}, st.Peers); d != "" {
		t.Errorf("peers (-want +got):\n%s", d)
	}
	if st.Connections != 2 || st.ConnectionsMax != connectionsMax+2*pluginConnections {
		t.Errorf("%d connections of %d", st.Connections, st.ConnectionsMax)
	}
}

// A plugin that is known by its key has its name.
func TestStatusOfAPluginWithAKey(t *testing.T) {
	public, key := newKey(t)
	address, b := openTCP(t, withKey(public))
	far, err := dialTCP(t, address, nats.Nkey(public, key.Sign))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := far.Subscribe(gatenats.Subject("far"), func(*nats.Msg) {}); err != nil {
		t.Fatal(err)
	}
	if err := far.Flush(); err != nil {
		t.Fatal(err)
	}
	st, err := b.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]event.Peer{{Name: "far", Connections: 1, Subscriptions: 1}}, st.Peers); d != "" {
		t.Errorf("peers (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]event.Gate{{Name: "far", Plugins: []string{"far"}, Present: true}}, st.Gates); d != "" {
		t.Errorf("gates (-want +got):\n%s", d)
	}
}

// A gate of a plugin that is not there is not found, also across accounts; and
// one that is there answers.
func TestAGateIsAPluginsToAnswer(t *testing.T) {
	socket, _ := openWith(t, twoPlugins(t), func(*Bus) {})
	network, root := connectAs(t, socket, uidNet), connectAs(t, socket, 0)
	a := gatenats.NewAsker(root.Conn)
	r := gate.Request{Namespace: "one", Container: "c1", Pid: 1}
	short, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := a.Ask(short, "network", r); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("nobody is there: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- gatenats.Serve(ctx, network.Conn, "network", gate.Func(func(_ context.Context, r gate.Request) error {
			if r.Pid == 2 {
				return errors.New("two is too many")
			}
			return nil
		}))
	}()
	patience := gate.Patience{Answer: 20 * time.Second, Absent: 20 * time.Second}
	if err := patience.Ask(t.Context(), a, "network", r); err != nil {
		t.Errorf("it passes: %v", err)
	}
	r.Pid = 2
	if err := patience.Ask(t.Context(), a, "network", r); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("it denies: %v", err)
	}
	stop()
	<-served
}
