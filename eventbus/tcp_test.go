package eventbus

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/gantryd/gantry/services/event"
)

// newKey makes the key of a user.
func newKey(t *testing.T) (public string, key nkeys.KeyPair) {
	t.Helper()
	return newKeyOf(t, nkeys.PrefixByteUser)
}

// openTCP opens a bus that listens for a plugin with the key.
func openTCP(t *testing.T, cfg Config) (address string, b *Bus) {
	t.Helper()
	_, b = openWith(t, cfg, func(*Bus) {})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- b.ServeTCP(ctx, lis) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != context.Canceled {
			t.Errorf("ServeTCP: %v", err)
		}
	})
	return lis.Addr().String(), b
}

func withKey(public string) Config {
	cfg := Default()
	cfg.TCP.Listen = "127.0.0.1:4222"
	cfg.Plugins = []Plugin{{Name: "far", NKey: public, Subscribe: []string{"gantry.v1.*.tasks.>"}, Gates: []string{"far"}}}
	return cfg
}

// dialTCP connects with a stock client.
func dialTCP(t *testing.T, address string, o ...nats.Option) (client, error) {
	t.Helper()
	c := client{refused: make(chan error, 16)}
	nc, err := nats.Connect("nats://"+address, append(o, nats.NoReconnect(),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { c.refused <- err }))...)
	if err == nil {
		t.Cleanup(nc.Close)
	}
	c.Conn = nc
	return c, err
}

func TestAPluginWithAKeyConnectsByTCP(t *testing.T) {
	public, key := newKey(t)
	cfg := withKey(public)
	if err := cfg.Check(); err != nil {
		t.Errorf("Check: %v", err)
	}
	address, b := openTCP(t, cfg)
	far, err := dialTCP(t, address, nats.Nkey(public, key.Sign))
	if err != nil {
		t.Fatal(err)
	}
	told := watch(t, far, "gantry.v1.*.tasks.>")
	for _, e := range []event.Payload{event.ContainerDelete{ID: "c"}, event.TaskExit{ContainerID: "c", ID: "c"}} {
		if err := b.Publish(t.Context(), event.New("one", time.Now(), e)); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "far", far, told, "gantry.v1.one.tasks.exit")
	st, err := b.Status(t.Context())
	if err != nil || len(st.Peers) != 1 || st.Peers[0].Name != "far" || st.Peers[0].Connections != 1 {
		t.Errorf("peers are %+v, %v", st.Peers, err)
	}
	before := lastSequence(t, b)
	for _, s := range []string{"gantry.v1.one.tasks.exit", "$JS.API.STREAM.PURGE.EVENTS", "$SYS.REQ.SERVER.PING"} {
		if !far.isRefused(t, func() error { return far.Publish(s, nil) }) {
			t.Errorf("publish to %s is not refused", s)
		}
	}
	for _, s := range []string{">", "gantry.v1.>", "gantry.v1.*.containers.>"} {
		if !far.isRefused(t, func() error { _, err := far.SubscribeSync(s); return err }) {
			t.Errorf("subscribe to %s is not refused", s)
		}
	}
	if got := lastSequence(t, b); got != before {
		t.Errorf("the stream has %d messages more", got-before)
	}
}

func TestWhoHasNoKeyIsRefusedByTCP(t *testing.T) {
	public, _ := newKey(t)
	stranger, strange := newKey(t)
	address, b := openTCP(t, withKey(public))
	for name, o := range map[string][]nats.Option{
		"nobody":             nil,
		"a role":             {nats.UserInfo(roleBus, "")},
		"a token":            {nats.Token("x")},
		"another key":        {nats.Nkey(stranger, strange.Sign)},
		"the key of another": {nats.Nkey(public, strange.Sign)},
	} {
		if _, err := dialTCP(t, address, o...); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if b.server.Addr() != nil {
		t.Errorf("the server listens itself, on %v", b.server.Addr())
	}
}

func TestAPluginByTCPCannotTakeAllConnections(t *testing.T) {
	public, key := newKey(t)
	other, otherKey := newKey(t)
	cfg := withKey(public)
	cfg.Plugins = append(cfg.Plugins, Plugin{Name: "other", NKey: other})
	address, _ := openTCP(t, cfg)
	for range pluginConnections {
		if _, err := dialTCP(t, address, nats.Nkey(public, key.Sign)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := dialTCP(t, address, nats.Nkey(public, key.Sign)); err == nil {
		t.Error("one too many is let in")
	}
	if _, err := dialTCP(t, address, nats.Nkey(other, otherKey.Sign)); err != nil {
		t.Errorf("another plugin: %v", err)
	}
}

func TestTLSIsRequiredWhereThereIsACertificate(t *testing.T) {
	public, key := newKey(t)
	cfg := withKey(public)
	var pool *x509.CertPool
	cfg.TCP.Certificate, cfg.TCP.Key, pool = certificate(t)
	address, b := openTCP(t, cfg)
	far, err := dialTCP(t, address, nats.Nkey(public, key.Sign), nats.Secure(&tls.Config{RootCAs: pool}))
	if err != nil {
		t.Fatal(err)
	}
	told := watch(t, far, "gantry.v1.*.tasks.>")
	if err := b.Publish(t.Context(), event.New("one", time.Now(), event.TaskExit{ContainerID: "c", ID: "c"})); err != nil {
		t.Fatal(err)
	}
	expect(t, "far", far, told, "gantry.v1.one.tasks.exit")
	if _, err := dialTCP(t, address, nats.Nkey(public, key.Sign)); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a client that does not know the certificate: %v", err)
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		TLSRequired bool `json:"tls_required"`
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "INFO ")), &info); err != nil || !info.TLSRequired {
		t.Errorf("the server says %q, %v", line, err)
	}
	if _, err := io.WriteString(c, "CONNECT {\"verbose\":false}\r\nPING\r\n"); err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(r); strings.Contains(string(rest), "PONG") {
		t.Errorf("without TLS it says %q", rest)
	}
}

// certificate makes one for 127.0.0.1.
func certificate(t *testing.T) (certificate, key string, pool *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames: []string{"localhost"}, // which Node asks for
		IsCA:     true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, of, of, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certificate, key = filepath.Join(dir, "certificate.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{
		certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(parsed)
	return certificate, key, pool
}

func TestEveryMistakeInTCPIsTold(t *testing.T) {
	public, _ := newKey(t)
	for name, c := range map[string]struct {
		tcp    TCP
		plugin Plugin
		says   string
	}{
		"no port":              {TCP{Listen: "127.0.0.1"}, Plugin{}, "tcp.listen"},
		"a name":               {TCP{Listen: "localhost:4222"}, Plugin{}, "tcp.listen"},
		"a certificate alone":  {TCP{Listen: "127.0.0.1:1", Certificate: "/c"}, Plugin{}, "go together"},
		"a certificate for no": {TCP{Certificate: "/c", Key: "/k"}, Plugin{}, "tcp.listen"},
		"a relative path":      {TCP{Listen: "127.0.0.1:1", Certificate: "c", Key: "/k"}, Plugin{}, "tcp.certificate"},
		"all without TLS":      {TCP{Listen: "0.0.0.0:4222"}, Plugin{}, "not loopback"},
		"all of IPv6":          {TCP{Listen: "[::]:4222"}, Plugin{}, "not loopback"},
		"a key for nothing":    {TCP{}, Plugin{Name: "p", NKey: public}, "nkey: there is no tcp.listen"},
		"a key and a user":     {TCP{Listen: "127.0.0.1:1"}, Plugin{Name: "p", User: "u", NKey: public}, "want one"},
		"a key twice":          {TCP{Listen: "127.0.0.1:1"}, Plugin{Name: "p", NKey: public}, "is that of plugin"},
		"no key":               {TCP{Listen: "127.0.0.1:1"}, Plugin{Name: "p", NKey: "UABC"}, "nkey:"},
		"a seed":               {TCP{Listen: "127.0.0.1:1"}, Plugin{Name: "p", NKey: fmt.Sprint("S", public)}, "nkey:"},
	} {
		cfg := Default()
		cfg.TCP = c.tcp
		cfg.Plugins = []Plugin{c.plugin}
		if name == "a key twice" {
			cfg.Plugins = append(cfg.Plugins, Plugin{Name: "q", NKey: public})
		}
		if c.plugin.Name == "" {
			cfg.Plugins = nil
		}
		if err := cfg.Check(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

// A plugin that takes all the connections that it may have, as soon as it can,
// is still answered by the bus.
func TestByTCPNobodyComesBeforeTheBus(t *testing.T) {
	public, key := newKey(t)
	cfg := withKey(public)
	cfg.Root = filepath.Join(t.TempDir(), "eventbus")
	b, err := Open(cfg, Needs{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(t.TempDir(), "nats.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var works sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		works.Wait()
		b.Close()
	})
	works.Go(func() { _ = b.ServeTCP(ctx, tcp) })
	c, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("before the bus: %d bytes, %v", n, err)
	}
	works.Go(func() { _ = b.ServeNATS(ctx, socket) })
	for range pluginConnections {
		far, err := dialTCP(t, tcp.Addr().String(), nats.Nkey(public, key.Sign))
		if err != nil {
			t.Fatal(err)
		}
		if _, status, _ := far.read(t, "{}"); status != "ok" {
			t.Errorf("a read ends with %s", status)
		}
	}
}

// Whatever the config asks for, there is one socket to connect to, and that is
// its caller's.
func TestTheServerListensNowhere(t *testing.T) {
	public, key := newKey(t)
	cfg := withKey(public)
	cfg.Leaf = fleetConfig(t, &fleet{link: newLink(t, "127.0.0.1:1")}, key).Leaf
	before := listening(t)
	openTCP(t, cfg)
	if got := listening(t); got != before+1 {
		t.Errorf("this process listens on %d sockets, listened on %d", got, before)
	}
}

// listening counts the sockets of TCP and UDP on which this process listens.
func listening(t *testing.T) (n int) {
	t.Helper()
	own := make(map[string]bool)
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
			own[to] = true
		}
	}
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6", "/proc/self/net/udp", "/proc/self/net/udp6"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			const listen, bound = "0A", "07"
			if len(f) > 9 && (f[3] == listen || f[3] == bound) && own["socket:["+f[9]+"]"] {
				n++
			}
		}
	}
	return n
}
