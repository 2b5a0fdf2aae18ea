package eventbus

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A fleet is a stock NATS server, in whose account nodes are.
type fleet struct {
	admin client
	js    jetstream.JetStream
	link  *link
}

// startFleet starts a server that lets in whoever has the key. tls is more of the
// configuration of its leaf nodes.
func startFleet(t *testing.T, public, tls string) *fleet {
	t.Helper()
	return startServer(t, tls, fmt.Sprintf(`
		accounts {
			NODES: {
				jetstream: enabled
				users: [
					{ nkey: %s, permissions: { publish: "gantry.node%%2E1.v1.>", subscribe: "_INBOX.>" } }
					{ user: admin, password: admin }
				]
			}
		}
	`, public), nats.UserInfo("admin", "admin"))
}

// startServer starts a server that says who is who.
func startServer(t *testing.T, tls, who string, admin nats.Option) *fleet {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "server.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, `
		listen: "127.0.0.1:-1", leafnodes { listen: "127.0.0.1:-1", %s }
		jetstream { store_dir: %q }
		%s
	`, tls, dir, who), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(stockServer(t), "-c", config)
	says, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	listens := make(chan string, 2)
	ended := make(chan error, 1)
	go func() {
		for lines := bufio.NewScanner(says); lines.Scan(); {
			said = append(said, lines.Text())
			if _, address, ok := strings.Cut(lines.Text(), " connections on "); ok {
				listens <- address
			}
		}
		ended <- c.Wait()
	}()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("the fleet says:\n%s", strings.Join(said, "\n"))
		}
	})
	var addresses [2]string // of leaf nodes, and of clients
	for i := range addresses {
		select {
		case addresses[i] = <-listens:
		case <-time.After(30 * time.Second):
			t.Fatal("the fleet does not listen")
		}
	}
	f := &fleet{link: newLink(t, addresses[0])}
	if f.admin, err = dialTCP(t, addresses[1], admin); err != nil {
		t.Fatal(err)
	}
	if f.js, err = jetstream.New(f.admin.Conn); err != nil {
		t.Fatal(err)
	}
	return f
}

// stockServer builds the server that our go.mod names, unless it is there.
func stockServer(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../.build/nats-server")
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("go", "build", "-o", path, "github.com/nats-io/nats-server/v2")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", c.Args, err, out)
	}
	return path
}

func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		if err = try(); err == nil {
			return
		}
		<-time.After(5 * time.Millisecond)
	}
	t.Fatalf("not in time: %s: %v", what, err)
}

// A link is between a node and its fleet, and can be cut.
type link struct {
	address string

	mu    sync.Mutex
	cut   bool
	conns []net.Conn
}

func newLink(t *testing.T, to string) *link {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{address: lis.Addr().String()}
	var works sync.WaitGroup
	t.Cleanup(func() {
		lis.Close()
		l.set(true)
		works.Wait()
	})
	works.Go(func() {
		for {
			near, err := lis.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil || !l.carry(near, far) {
				near.Close()
				continue
			}
			works.Go(func() { _, _ = io.Copy(near, far); near.Close(); far.Close() })
			works.Go(func() { _, _ = io.Copy(far, near); near.Close(); far.Close() })
		}
	})
	return l
}

func (l *link) carry(near, far net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		far.Close()
		return false
	}
	l.conns = append(l.conns, near, far)
	return true
}

func (l *link) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	if cut {
		for _, c := range l.conns {
			c.Close()
		}
		l.conns = nil
	}
}

// stream makes what takes the nodes' events.
func (f *fleet) stream(t *testing.T, o jetstream.StreamConfig) {
	t.Helper()
	o.Name, o.Subjects = "NODES", []string{"gantry.*.v1.>"}
	if _, err := f.js.CreateStream(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

// told waits until the stream has n messages and returns what they are about.
func (f *fleet) told(t *testing.T, n int) (messages []*jetstream.RawStreamMsg) {
	t.Helper()
	s, err := f.js.Stream(t.Context(), "NODES")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, fmt.Sprintf("the fleet has %d events", n), func() error {
		info, err := s.Info(t.Context())
		if err == nil && info.State.LastSeq != uint64(n) {
			err = fmt.Errorf("it has %d", info.State.LastSeq)
		}
		return err
	})
	for i := range n {
		m, err := s.GetMsg(t.Context(), uint64(i+1))
		if err != nil {
			t.Fatal(err)
		}
		messages = append(messages, m)
	}
	return messages
}
