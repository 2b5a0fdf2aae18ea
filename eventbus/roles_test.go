package eventbus

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/suite"
)

// rolePlugin is that of a plugin of the default config.
const rolePlugin = "plugin.dnsd"

// openAs opens a bus to which this process is somebody in a role.
func openAs(t *testing.T, role string) (socket string, b *Bus) {
	t.Helper()
	return openWith(t, Default(), func(b *Bus) { b.roles.byUID[uint32(os.Geteuid())] = b.roles.byName[role] })
}

// openWith opens a bus and serves NATS on a socket for everybody.
func openWith(t *testing.T, cfg Config, prepare func(*Bus)) (socket string, b *Bus) {
	t.Helper()
	cfg.Root = filepath.Join(t.TempDir(), "eventbus")
	b, err := Open(cfg, Needs{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	prepare(b)
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	socket = filepath.Join(dir, "nats.sock")
	lis, err := net.Listen("unix", socket)
	if err == nil {
		err = os.Chmod(socket, 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- b.ServeNATS(ctx, lis) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != context.Canceled {
			t.Errorf("ServeNATS: %v", err)
		}
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return socket, b
}

type dialer string

func (d dialer) Dial(string, string) (net.Conn, error) { return net.Dial("unix", string(d)) }

// A client of any NATS library, and what the server said no to.
type client struct {
	*nats.Conn
	refused chan error
}

func connect(t *testing.T, socket string, o ...nats.Option) client {
	t.Helper()
	c := client{refused: make(chan error, 16)}
	nc, err := nats.Connect("nats://gantry", append([]nats.Option{
		nats.SetCustomDialer(dialer(socket)),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { c.refused <- err }),
	}, o...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	c.Conn = nc
	return c
}

// isRefused says whether the server refuses what do does.
func (c client) isRefused(t *testing.T, do func() error) bool {
	t.Helper()
	if err := do(); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-c.refused:
		if !errors.Is(err, nats.ErrPermissionViolation) {
			t.Fatalf("refused with %v", err)
		}
		return true
	case <-time.After(20 * time.Millisecond): // the answer came before that of Flush
		return false
	}
}

func lastSequence(t *testing.T, b *Bus) uint64 {
	t.Helper()
	at, err := b.begin(event.SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return at.Sequence
}

func TestRolesMayDoNoMoreThanTheirs(t *testing.T) {
	for _, c := range []struct {
		role      string
		publish   []string
		subscribe []string
	}{
		{rolePlugin, []string{"gantry.bus.v1.read"}, []string{"gantry.v1.one.tasks.*", "gantry.v1.*.tasks.>", "_INBOX.x"}},
		{suite.Contentd, []string{"gantry.bus.v1.publish.one.content.create"}, []string{"_INBOX.answer.contentd.x"}},
		{suite.Imaged, []string{"gantry.bus.v1.publish.one.images.create", "gantry.bus.v1.publish.one.namespaces.delete"}, []string{"_INBOX.answer.imaged.x"}},
		{suite.Taskd, []string{"gantry.bus.v1.publish.a%2Eb.tasks.exit", "gantry.bus.v1.publish.one.containers.create"}, []string{"_INBOX.answer.taskd.x"}},
		{suite.Gatewayd, nil, []string{"_INBOX.answer.gatewayd.x"}},
		{roleOperator, []string{"gantry.bus.v1.publish.one.plugins.x", "gantry.v1.gate.network", "gantry.bus.v1.read"}, []string{"gantry.v1.>", "_INBOX.x"}},
	} {
		t.Run(c.role, func(t *testing.T) {
			socket, b := openAs(t, c.role)
			nc := connect(t, socket)
			for _, s := range c.publish {
				if nc.isRefused(t, func() error { return nc.Publish(s, nil) }) {
					t.Errorf("publish to %s is refused", s)
				}
			}
			for _, s := range c.subscribe {
				if nc.isRefused(t, func() error { _, err := nc.SubscribeSync(s); return err }) {
					t.Errorf("subscribe to %s is refused", s)
				}
			}
			before := lastSequence(t, b)
			for _, s := range []string{
				"gantry.v1.one.plugins.x", "gantry.v1.one.tasks.exit", "gantry.v1.one.content.create", "gantry.v1.gate.network",
				"$JS.API.STREAM.INFO.EVENTS", "$JS.API.STREAM.CREATE.MINE", "$JS.API.STREAM.DELETE.EVENTS", "$JS.API.STREAM.PURGE.EVENTS",
				"$JS.API.STREAM.UPDATE.EVENTS", "$JS.API.STREAM.MSG.DELETE.EVENTS", "$JS.API.CONSUMER.CREATE.EVENTS.x",
				"$JS.API.CONSUMER.MSG.NEXT.EVENTS.x", "$JS.API.DIRECT.GET.EVENTS", "$SYS.REQ.SERVER.PING", "_INBOX.other", "anything",
				"gantry.bus.v1.read.dnsd", "gantry.bus.v1.other", "gantry.bus.v1.publish.one.plugins.x",
			} {
				if strings.Contains(strings.Join(c.publish, " ")+" ", s+" ") {
					continue
				}
				if !nc.isRefused(t, func() error { return nc.Publish(s, []byte("x")) }) {
					t.Errorf("publish to %s is not refused", s)
				}
			}
			if got := lastSequence(t, b); got != before {
				t.Errorf("the stream has %d messages more", got-before)
			}
			mayNot := []string{">", "$JS.>", "$SYS.>", "gantry.>", "$JS.API.>", "gantry.bus.>", "_R_.>"}
			if c.role != roleOperator && c.role != rolePlugin {
				mayNot = append(mayNot, "_INBOX.>", "_INBOX.read.>", "_INBOX.answer.>", "_INBOX.x") // what others ask and read
			}
			for _, s := range mayNot {
				if !nc.isRefused(t, func() error { _, err := nc.SubscribeSync(s); return err }) {
					t.Errorf("subscribe to %s is not refused", s)
				}
			}
		})
	}
}

func TestAPeerCannotSayThatItIsSomebodyElse(t *testing.T) {
	socket, b := openAs(t, rolePlugin)
	for name, o := range map[string]nats.Option{
		"user":       nats.UserInfo(roleBus, ""),
		"old secret": nats.UserInfo(roleBus, "x"),
		"token":      nats.Token("x"),
	} {
		nc := connect(t, socket, o)
		if !nc.isRefused(t, func() error { return nc.Publish("gantry.v1.one.tasks.exit", nil) }) {
			t.Errorf("%s: publish is not refused", name)
		}
	}
	for name, lines := range map[string]string{
		"twice, in capitals":      `CONNECT {"USER":"bus","User":"operator","pass":"x","verbose":false}` + "\r\nPUB gantry.v1.one.tasks.exit 1\r\nx\r\n",
		"another greeting":        "CONNECT {\"verbose\":false}\r\nCONNECT {\"user\":\"bus\",\"pass\":\"\"}\r\nPUB gantry.v1.one.tasks.exit 1\r\nx\r\n",
		"none":                    "PUB gantry.v1.one.tasks.exit 1\r\nx\r\n",
		"not JSON":                "CONNECT bus\r\nPUB gantry.v1.one.tasks.exit 1\r\nx\r\n",
		"more than a line":        "CONNECT " + strings.Repeat(" ", 5000) + "{}\r\n",
		"a line within the name":  "CONNECT {\"name\":\"a\\r\\nCONNECT {}\"}\r\nPUB gantry.v1.one.tasks.exit 1\r\nx\r\n",
		"another account's":       "CONNECT {\"account\":\"$SYS\",\"new_account\":true}\r\nPUB gantry.v1.one.tasks.exit 1\r\nx\r\n",
		"a route's":               "INFO {}\r\nCONNECT {}\r\n",
		"a subject with a header": "CONNECT {\"headers\":true}\r\nHPUB gantry.v1.one.tasks.exit 12 13\r\nNATS/1.0\r\n\r\nx\r\n",
	} {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte(lines + "PING\r\n"))
		var said strings.Builder
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			said.Write(buf[:n])
			if err != nil || strings.Contains(said.String(), "PONG") {
				break
			}
		}
		conn.Close()
		if strings.Contains(said.String(), b.roles.byName[rolePlugin].secret) {
			t.Errorf("%s: the peer was told its secret", name)
		}
	}
	if got := lastSequence(t, b); got != 0 {
		t.Errorf("the stream has %d messages", got)
	}
}

// A refusal is an error of the call, not its deadline.
func TestARefusedCallIsPermissionDenied(t *testing.T) {
	socket, _ := openAs(t, suite.Contentd)
	b, err := eventnats.DialAs(socket, suite.Contentd)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	own, foreign := event.New("one", time.Now(), event.ContentDelete{Digest: "d"}), event.New("one", time.Now(), event.ContainerDelete{ID: "c"})
	for deadline := time.Now().Add(10 * time.Second); ; {
		if err = b.Publish(t.Context(), own); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		t.Errorf("Publish of its own: %v", err)
	}
	began := time.Now()
	if err := b.Publish(t.Context(), foreign); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("Publish of another's: %v", err)
	}
	if _, err := b.Subscribe(t.Context(), event.SubscribeOptions{}); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("Subscribe: %v", err)
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("it took %v to say no", d)
	}
}
