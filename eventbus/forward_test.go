package eventbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/gantryd/gantry/services/event"
)

// forwarding opens a bus that tells the fleet.
func forwarding(t *testing.T, cfg Config) (b *Bus, stop func()) {
	t.Helper()
	b, err := Open(cfg, Needs{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var works sync.WaitGroup
	for _, work := range []func(context.Context) error{b.Forward} {
		works.Go(func() {
			if err := work(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("a work ended with %v", err)
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		works.Wait()
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	t.Cleanup(stop)
	return b, stop
}

func withFleet(t *testing.T) (Config, *fleet) {
	t.Helper()
	public, key := newKey(t)
	f := startFleet(t, public, "")
	return fleetConfig(t, f, key), f
}

func fleetConfig(t *testing.T, f *fleet, key nkeys.KeyPair) Config {
	t.Helper()
	seed, err := key.Seed()
	if err != nil {
		t.Fatal(err)
	}
	cfg := Default()
	cfg.Root = filepath.Join(t.TempDir(), "eventbus")
	cfg.Leaf = Leaf{URL: "nats-leaf://" + f.link.address, NKey: filepath.Join(t.TempDir(), "seed"), Node: "node.1"}
	if err := os.WriteFile(cfg.Leaf.NKey, append(seed, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cfg.Check(); err != nil {
		t.Errorf("Check: %v", err)
	}
	return cfg
}

func publishNumbers(t *testing.T, b *Bus, ids ...int) {
	t.Helper()
	for _, n := range ids {
		e := event.New("one", time.Now(), event.ContainerDelete{ID: fmt.Sprint("c", n)})
		e.ID = fmt.Sprint("taskd/1/", n)
		if err := b.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAFleetIsToldOfEveryEventInOrder(t *testing.T) {
	cfg, f := withFleet(t)
	b, stop := forwarding(t, cfg)
	publishNumbers(t, b, 1, 2, 3)
	eventually(t, "the link is up", func() error {
		if b.server.NumLeafNodes() == 0 {
			return errors.New("it is down")
		}
		return nil
	})
	// The fleet had no stream until now.
	f.stream(t, jetstream.StreamConfig{})
	f.told(t, 3)
	f.link.set(true)
	publishNumbers(t, b, 4, 5)
	stop()
	b, _ = forwarding(t, cfg)
	publishNumbers(t, b, 6, 7)
	f.link.set(false)
	publishNumbers(t, b, 8)
	for i, m := range f.told(t, 8) {
		if got, want := m.Subject, "gantry.node%2E1.v1.one.containers.delete"; got != want {
			t.Errorf("subject is %s, want %s", got, want)
		}
		if got, want := m.Header.Get("ce-id"), fmt.Sprint("taskd/1/", i+1); got != want {
			t.Errorf("message %d is event %s, want %s", i+1, got, want)
		}
		if got, want := string(m.Data), fmt.Sprintf(`{"id":"c%d"}`, i+1); got != want {
			t.Errorf("message %d is %s, want %s", i+1, got, want)
		}
	}
}

func TestAFleetIsToldWithTLS(t *testing.T) {
	public, key := newKey(t)
	file, secret, _ := certificate(t)
	f := startFleet(t, public, fmt.Sprintf("tls { cert_file: %q, key_file: %q }", file, secret))
	f.stream(t, jetstream.StreamConfig{})
	cfg := fleetConfig(t, f, key)
	cfg.Leaf.URL, cfg.Leaf.CA = "tls://"+f.link.address, file
	b, _ := forwarding(t, cfg)
	publishNumbers(t, b, 1)
	f.told(t, 1)

	// A fleet that somebody else pretends to be is told nothing.
	cfg.Root, cfg.Leaf.CA = filepath.Join(t.TempDir(), "eventbus"), ""
	stranger, _ := forwarding(t, cfg)
	publishNumbers(t, stranger, 2)
	publishNumbers(t, b, 3)
	if m := f.told(t, 2)[1]; m.Header.Get("ce-id") != "taskd/1/3" || stranger.server.NumLeafNodes() > 0 {
		t.Errorf("the fleet was told %s", m.Header.Get("ce-id"))
	}
}

// What was lost before the fleet could be told, it is told of as lost.
func TestAFleetIsToldOfAGap(t *testing.T) {
	cfg, f := withFleet(t)
	f.stream(t, jetstream.StreamConfig{MaxMsgSize: 2000})
	b, stop := forwarding(t, cfg)
	publishNumbers(t, b, 1)
	f.told(t, 1)
	eventually(t, "the node knows that it is told", func() error {
		st, err := b.Status(t.Context())
		if err == nil && (len(st.Readers) != 1 || st.Readers[0].Lag != 0) {
			err = fmt.Errorf("readers are %+v", st.Readers)
		}
		return err
	})
	stop()
	if err := os.RemoveAll(filepath.Join(cfg.Root, streamName)); err != nil {
		t.Fatal(err)
	}
	b, _ = forwarding(t, cfg)
	publishNumbers(t, b, 2)
	large := event.New("one", time.Now(), event.ContainerDelete{ID: strings.Repeat("x", 3000)})
	large.ID, large.Subject = "taskd/1/3", "x"
	if err := b.Publish(t.Context(), large); err != nil {
		t.Fatal(err)
	}
	publishNumbers(t, b, 4)
	told := f.told(t, 5)
	eventually(t, "operators see it", func() error {
		st, err := b.Status(t.Context())
		if err == nil && (len(st.Readers) != 1 || st.Readers[0].Plugin != "fleet" || st.Readers[0].Lag != 0 || st.Readers[0].Gaps != 1) {
			err = fmt.Errorf("readers are %+v", st.Readers)
		}
		return err
	})
	if got, want := told[1].Subject, "gantry.node%2E1.v1.gap"; got != want || !strings.Contains(string(told[1].Data), b.epoch) {
		t.Errorf("told %s of %s, want %s", told[1].Data, got, want)
	}
	for i, want := range []string{"taskd/1/1", "", "taskd/1/2", "taskd/1/3", "taskd/1/4"} {
		if got := told[i].Header.Get("ce-id"); got != want {
			t.Errorf("message %d is event %q, want %q", i+1, got, want)
		}
	}
	if got := told[3].Header.Get("gantry-omitted"); got == "" || len(told[3].Data) != 0 {
		t.Errorf("too large for the stream: %d bytes, omitted %q", len(told[3].Data), got)
	}
}

func TestAHostileFleetReachesNothing(t *testing.T) {
	cfg, f := withFleet(t)
	f.stream(t, jetstream.StreamConfig{})
	b, _ := forwarding(t, cfg)
	publishNumbers(t, b, 1)
	f.told(t, 1)
	bus, err := nats.Connect("", nats.InProcessServer(b.server), nats.UserInfo(roleBus, b.roles.byName[roleBus].secret))
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	seen := watch(t, client{Conn: bus}, "gantry.>")
	heard := watch(t, f.admin, ">")
	for _, s := range []string{
		"gantry.v1.one.tasks.exit", "gantry.v1.gate.network", "gantry.bus.v1.read", "gantry.bus.v1.publish.one.tasks.exit",
		"$JS.API.STREAM.PURGE.EVENTS", "$JS.API.STREAM.DELETE.EVENTS", "$JS.API.INFO", "$SYS.REQ.SERVER.PING", "_R_.abcdef.123456", "_INBOX.x",
	} {
		if err := f.admin.PublishRequest(s, "back."+s, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.admin.Flush(); err != nil {
		t.Fatal(err)
	}
	// What comes through the link comes in order: all of it is past. The stream
	// takes two of these, as if they were nodes'.
	publishNumbers(t, b, 2)
	if m := f.told(t, 4)[3]; m.Header.Get("ce-id") != "taskd/1/2" {
		t.Errorf("the fleet was told of %s last", m.Subject)
	}
	if got := lastSequence(t, b); got != 2 {
		t.Errorf("the node's stream has %d events, want 2", got)
	}
	if err := bus.Flush(); err != nil {
		t.Fatal(err)
	}
	for len(seen) > 0 {
		if m := <-seen; m.Subject != "gantry.v1.one.containers.delete" {
			t.Errorf("the node sees %s", m.Subject)
		}
	}
	for len(heard) > 0 {
		m := <-heard
		byFleet := strings.HasPrefix(m.Subject, "back.$JS.API.") || strings.Contains(string(m.Data), `"stream":"NODES"`)
		if strings.HasPrefix(m.Subject, "back.") && !byFleet {
			t.Errorf("the fleet is answered on %s: %s", m.Subject, m.Data)
		}
	}
}
