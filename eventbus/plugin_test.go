package eventbus

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/event"
)

// Peers of the tests: two plugins, and one who is nobody.
const (
	uidNet    = 61001
	uidNames  = 61002
	uidNobody = 61003
)

func twoPlugins(t *testing.T) Config {
	if os.Geteuid() != 0 {
		t.Skip("only root connects as another user")
	}
	cfg := Default()
	cfg.Plugins = []Plugin{
		{Name: "net", User: fmt.Sprint(uidNet), Subscribe: []string{"gantry.v1.*.tasks.>"}, Gates: []string{"network", "mesh"}},
		{Name: "names", User: fmt.Sprint(uidNames), Subscribe: []string{"gantry.v1.*.containers.>", "gantry.v1.*.tasks.>"}, Gates: []string{"names"}},
	}
	return cfg
}

// A peerDialer connects as another user. What the socket tells of its peer is
// the user of the thread that connected.
type peerDialer struct {
	socket string
	uid    int
}

func (d peerDialer) Dial(string, string) (c net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and the thread ends with the goroutine
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(d.uid), ^uintptr(0)); errno != 0 {
			err = errno
			return
		}
		c, err = net.Dial("unix", d.socket)
	}()
	<-done
	return c, err
}

func connectAs(t *testing.T, socket string, uid int) client {
	t.Helper()
	return connect(t, socket, nats.SetCustomDialer(peerDialer{socket, uid}))
}

// A watcher notes every message that somebody can see.
func watch(t *testing.T, c client, subjects ...string) chan *nats.Msg {
	t.Helper()
	seen := make(chan *nats.Msg, 64)
	for _, s := range subjects {
		if _, err := c.ChanSubscribe(s, seen); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	return seen
}

// expect waits for messages on the subjects, in that order, and makes sure that
// there are no more.
func expect(t *testing.T, who string, c client, seen chan *nats.Msg, subjects ...string) {
	t.Helper()
	for _, want := range subjects {
		select {
		case m := <-seen:
			if m.Subject != want {
				t.Errorf("%s is told %s, want %s", who, m.Subject, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s is not told %s", who, want)
		}
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	select {
	case m := <-seen:
		t.Errorf("%s is told %s too", who, m.Subject)
	case <-time.After(20 * time.Millisecond): // what was sent came before the answer to Flush
	}
}

func TestAPluginIsToldWhatItWasGrantedAndNoMore(t *testing.T) {
	socket, b := openWith(t, twoPlugins(t), func(*Bus) {})
	network, names := connectAs(t, socket, uidNet), connectAs(t, socket, uidNames)
	tasks := watch(t, network, "gantry.v1.*.tasks.>")
	both := watch(t, names, "gantry.v1.one.containers.create", "gantry.v1.one.tasks.*")
	for _, e := range []event.Payload{
		event.ContainerCreate{ID: "c"}, event.TaskExit{ContainerID: "c", ID: "c"}, event.ContentDelete{Digest: "d"},
	} {
		if err := b.Publish(t.Context(), event.New("one", time.Now(), e)); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "net", network, tasks, "gantry.v1.one.tasks.exit")
	expect(t, "names", names, both, "gantry.v1.one.containers.create", "gantry.v1.one.tasks.exit")
}

func TestOnlyItsPluginAnswersAGate(t *testing.T) {
	cfg := twoPlugins(t)
	cfg.Plugins[0].Gates = append(cfg.Plugins[0].Gates, "my.gate")
	socket, _ := openWith(t, cfg, func(*Bus) {})
	root, network, names := connect(t, socket), connectAs(t, socket, uidNet), connectAs(t, socket, uidNames)
	if _, err := root.Request("gantry.v1.gate.network", nil, 10*time.Second); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("a gate that nobody answers: %v", err)
	}
	for _, s := range []string{"gantry.v1.gate.network", "gantry.v1.gate.*", "gantry.v1.gate.>"} {
		if !names.isRefused(t, func() error { _, err := names.SubscribeSync(s); return err }) {
			t.Errorf("another subscribes to %s", s)
		}
	}
	if _, err := network.Subscribe("gantry.v1.gate.network", func(m *nats.Msg) {
		_ = m.Respond([]byte("yes"))
		_ = m.Respond([]byte("no")) // one too many
	}); err != nil {
		t.Fatal(err)
	}
	if err := network.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := network.Subscribe("gantry.v1.gate.my%2Egate", func(m *nats.Msg) { _ = m.Respond([]byte("too")) }); err != nil {
		t.Fatal(err)
	}
	if err := network.Flush(); err != nil {
		t.Fatal(err)
	}
	if m, err := root.Request("gantry.v1.gate.my%2Egate", nil, 10*time.Second); err != nil || string(m.Data) != "too" {
		t.Errorf("a gate with a dot says %v, %v", m, err)
	}
	seen := watch(t, names, inboxes)
	for range 3 {
		if m, err := root.Request("gantry.v1.gate.network", []byte("{}"), 10*time.Second); err != nil || string(m.Data) != "yes" {
			t.Fatalf("the gate says %v, %v", m, err)
		}
	}
	expect(t, "names", names, seen)
	if m, err := root.Request("gantry.v1.gate.names", nil, 10*time.Second); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("a gate that nobody answers: %v, %v", m, err)
	}
}

func TestNobodyIsClosedAtTheDoor(t *testing.T) {
	socket, b := openWith(t, twoPlugins(t), func(*Bus) {})
	connectAs(t, socket, uidNames) // the bus is in every account by now
	before := b.server.NumClients()
	for range 100 {
		c, err := peerDialer{socket, uidNobody}.Dial("", "")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("Read: %d, %v", n, err)
		}
		c.Close()
	}
	if got := b.server.NumClients(); got != before {
		t.Errorf("the server has %d clients, had %d", got, before)
	}
}

func TestAPluginCannotTakeAllConnections(t *testing.T) {
	socket, _ := openWith(t, twoPlugins(t), func(*Bus) {})
	refused := false
	for range pluginConnections + 1 {
		c, err := peerDialer{socket, uidNet}.Dial("", "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(c).ReadString('\n'); err == io.EOF {
			refused = true
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if !refused {
		t.Error("none was refused")
	}
	connectAs(t, socket, uidNames)
}

// What a plugin's connection may say that it should not, as the protocol has
// it, and what the server says to it.
func TestAPluginThatAttacksHarmsNobody(t *testing.T) {
	socket, b := openWith(t, twoPlugins(t), func(*Bus) {})
	root, names := connect(t, socket), connectAs(t, socket, uidNames)
	all := watch(t, root, "gantry.v1.>", "_INBOX.x") // the bus has inboxes of its own
	theirs := watch(t, names, "gantry.v1.*.tasks.>", inboxes, "gantry.v1.gate.names")
	const denied = "Permissions Violation"
	for name, c := range map[string]struct{ lines, says string }{
		"an event":              {"PUB gantry.v1.one.tasks.exit 1\r\nx\r\n", denied},
		"an event to the bus":   {"PUB gantry.bus.v1.publish.one.tasks.exit _INBOX.x 1\r\nx\r\n", denied},
		"an event for an ack":   {"PUB gantry.v1.one.tasks.exit _INBOX.x 1\r\nx\r\n", denied},
		"an event with an id":   {"HPUB gantry.v1.one.tasks.exit 34 35\r\nNATS/1.0\r\nNats-Msg-Id: taskd/1\r\n\r\nx\r\n", denied},
		"another's inbox":       {"PUB _INBOX.x 1\r\nx\r\n", denied},
		"another's gate":        {"PUB gantry.v1.gate.names 1\r\nx\r\n", denied},
		"its own gate":          {"PUB gantry.v1.gate.network 1\r\nx\r\n", denied},
		"a read as another":     {"PUB gantry.bus.v1.read.names _INBOX.x 2\r\n{}\r\n", denied},
		"an answer not asked":   {"PUB _R_.abcdef.123456 1\r\nx\r\n", denied},
		"an acknowledgement":    {"PUB $JS.ACK.EVENTS.c.1.1.1.1.0 4\r\n-NAK\r\n", denied},
		"the stream's removal":  {"PUB $JS.API.STREAM.DELETE.EVENTS _INBOX.x 0\r\n\r\n", denied},
		"a pull into an event":  {"PUB $JS.API.CONSUMER.MSG.NEXT.EVENTS.c gantry.v1.one.tasks.exit 1\r\n1\r\n", denied},
		"a reply into an event": {"PUB gantry.bus.v1.read gantry.v1.one.tasks.exit 2\r\n{}\r\n", "PONG"}, // answers stay in its account
		"a reply to the stream": {"PUB gantry.bus.v1.read $JS.API.STREAM.PURGE.EVENTS 2\r\n{}\r\n", "PONG"},
		"a reply to itself":     {"PUB gantry.bus.v1.read gantry.bus.v1.read 2\r\n{}\r\n", "PONG"},
		"a reply of a service":  {"PUB gantry.bus.v1.read _R_.abcdef.123456 2\r\n{}\r\n", denied},
		"a reply as an ack":     {"PUB gantry.bus.v1.read $JS.ACK.EVENTS.c.1.1.1.1.0 2\r\n{}\r\n", denied},
		"the server":            {"PUB $SYS.REQ.SERVER.PING _INBOX.x 0\r\n\r\n", denied},
		"everything":            {"SUB > 1\r\n", denied},
		"every event":           {"SUB gantry.v1.> 1\r\n", denied},
		"all in two words":      {"SUB gantry.*.*.*.* 1\r\n", denied},
		"a queue":               {"SUB gantry.v1.> workers 1\r\n", denied},
		"what another has":      {"SUB gantry.v1.*.containers.* 1\r\n", denied},
		"requests of others":    {"SUB gantry.bus.> 1\r\n", denied},
		"answers of services":   {"SUB _R_.> 1\r\n", denied},
		"the API":               {"SUB $JS.API.> 1\r\n", denied},
		"the API's alarms":      {"SUB $JS.EVENT.> 1\r\n", denied},
		"connections":           {"SUB $SYS.> 1\r\n", denied},
		"a second greeting":     {"CONNECT {\"user\":\"operator\",\"pass\":\"\"}\r\n", "Authorization Violation"},
		"too much":              {fmt.Sprintf("PUB gantry.bus.v1.read %d\r\n", messageMax+1), "Maximum Payload Violation"},
		"too long":              {"PUB " + strings.Repeat("a", 8192) + " 0\r\n\r\n", "maximum control line"},
		"what a server says":    {"INFO {}\r\nRMSG $SYS x 1\r\nx\r\n", "Unknown Protocol Operation"},
		"what a leaf says":      {"LMSG gantry.v1.one.tasks.exit 1\r\nx\r\n", "Unknown Protocol Operation"},
	} {
		if said := say(t, socket, c.lines); !strings.Contains(said, c.says) {
			t.Errorf("%s: the server says %q, want %q", name, said, c.says)
		}
	}
	expect(t, "root", root, all)
	expect(t, "another plugin", names, theirs)
	if got := lastSequence(t, b); got != 0 {
		t.Errorf("the stream has %d messages", got)
	}
	if n := b.roles.byName[roleOperator].in.NumPendingAllResponses(); n != 0 {
		t.Errorf("%d answers are still waited for", n)
	}
}

// say connects as a plugin, says the lines, and returns what the server says
// until it has answered a ping or hung up.
func say(t *testing.T, socket, lines string) string {
	t.Helper()
	c, err := peerDialer{socket, uidNet}.Dial("", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	if _, err := r.ReadString('\n'); err != nil { // INFO
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(c, "CONNECT {\"verbose\":false,\"headers\":true}\r\n"+lines+"PING\r\n") }()
	var said strings.Builder
	for !strings.HasSuffix(said.String(), "PONG\r\n") {
		line, err := r.ReadString('\n')
		said.WriteString(line)
		if err != nil {
			break
		}
	}
	return said.String()
}
