package eventbus_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/eventbus"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/event/eventrpc"
	"github.com/gantryd/gantry/services/event/eventtest"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

func config(t testing.TB) eventbus.Config {
	cfg := eventbus.Default()
	cfg.Root = filepath.Join(t.TempDir(), "eventbus")
	return cfg
}

// A running bus is open and does its works.
type running struct {
	*eventbus.Bus
	socket string // of NATS
	stop   func()
}

func open(t testing.TB, cfg eventbus.Config) running {
	t.Helper()
	return openAt(t, cfg, filepath.Join(t.TempDir(), "nats.sock"))
}

func openAt(t testing.TB, cfg eventbus.Config, socket string) running {
	t.Helper()
	b, err := eventbus.Open(cfg, eventbus.Needs{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var works sync.WaitGroup
	for _, work := range []func(context.Context) error{
		b.Watch, func(ctx context.Context) error { return b.ServeNATS(ctx, lis) },
	} {
		works.Go(func() {
			if err := work(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("a work ended with %v", err)
			}
		})
	}
	stop := sync.OnceFunc(func() {
		cancel()
		works.Wait()
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	t.Cleanup(stop)
	return running{b, socket, stop}
}

func dial(t testing.TB, socket string) *eventnats.Bus {
	t.Helper()
	b, err := eventnats.Dial(socket)
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(b.Close)
	return b
}

func TestBus(t *testing.T) {
	eventtest.Run(t, func(t *testing.T) event.Bus { return open(t, config(t)).Bus })
}

func TestBusAcrossTheWire(t *testing.T) {
	eventtest.Run(t, func(t *testing.T) event.Bus {
		b := open(t, config(t))
		return eventrpc.NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { eventrpc.Register(r, b) }))
	})
}

func TestBusAcrossNATS(t *testing.T) {
	eventtest.Run(t, func(t *testing.T) event.Bus {
		b := dial(t, open(t, config(t)).socket)
		eventually(t, "a connection", func() error { return b.Publish(t.Context(), event.New("first", at, event.ContainerDelete{ID: "c"})) })
		return b
	})
}

func TestOpenRefusesWhatIsNotAnEventStream(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	cfg := config(t)
	open(t, cfg)
	_, err := eventbus.Open(cfg, eventbus.Needs{Log: log})
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("Open twice: %v", err)
	}
	other := eventbus.Default()
	other.Root = t.TempDir()
	if err := os.WriteFile(filepath.Join(other.Root, "MANIFEST"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := eventbus.Open(other, eventbus.Needs{Log: log}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Open of another daemon's directory: %v", err)
	}
}

func TestConfigReportsEveryMistake(t *testing.T) {
	if err := eventbus.Default().Check(); err != nil {
		t.Errorf("Default: %v", err)
	}
	err := eventbus.Config{Root: "x", Plugins: []eventbus.Plugin{{Name: "p", User: "p", Subscribe: []string{"$JS.>"}}}}.Check()
	for _, want := range []string{"root", "retain_hours", "retain_mib", "plugins"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Check: %v does not name %s", err, want)
		}
	}
}
