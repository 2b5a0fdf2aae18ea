package dnsd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/network"
)

// opened returns the address of a door on the loopback.
func opened(t *testing.T, s *Server) string {
	t.Helper()
	packets, streams, err := kernel{}.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	d := s.openDoor(t.Context(), packets, streams)
	t.Cleanup(d.close)
	return packets.LocalAddr().String()
}

func exchanged(t *testing.T, network, at string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 20 * time.Second}
	got, _, err := c.Exchange(m, at)
	if err != nil {
		t.Fatalf("%s %v: %v", network, m.Question, err)
	}
	return got
}

func asking(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), qtype)
	return m
}

func TestSocketsAnswer(t *testing.T) {
	w := newWorld(t)
	for i := range 16 {
		w.run(fmt.Sprintf("default/c%d", i), fmt.Sprintf("fd00::%d/64,10.87.0.%d/16", i+2, i+2), "all")
	}
	s := w.listed()
	at := opened(t, s)
	for _, network := range []string{"udp", "tcp"} {
		m := exchanged(t, network, at, asking("c1.default"+zone, dns.TypeA))
		if got := show(m); got != "NOERROR 10.87.0.3" || !m.Authoritative || m.Truncated || m.Answer[0].Header().Ttl != 5 {
			t.Errorf("%s: %v", network, m)
		}
	}
	// What does not fit is cut by UDP, and whole by TCP.
	m := asking("all.default"+zone, dns.TypeAAAA)
	if got := exchanged(t, "udp", at, m); len(got.Answer) == answersMax && got.Truncated {
		t.Errorf("an answer that is not cut says so: %v", got)
	}
	if got := exchanged(t, "tcp", at, m); got.Truncated || len(got.Answer) == 0 {
		t.Errorf("by TCP: %v", got)
	}
	m.SetEdns0(65535, true)
	got := exchanged(t, "udp", at, m)
	if o := got.IsEdns0(); o == nil || o.UDPSize() != replyMax || len(got.Answer) == 0 {
		t.Errorf("with EDNS: %v", got)
	}
	m.IsEdns0().SetVersion(1)
	if got := exchanged(t, "udp", at, m); got.Rcode != dns.RcodeBadVers || len(got.Answer) > 0 {
		t.Errorf("with an EDNS that is not: %v", got)
	}
	m = asking("c1.default"+zone, dns.TypeA)
	m.Question[0].Qclass = dns.ClassCHAOS
	if got := exchanged(t, "udp", at, m); got.Rcode != dns.RcodeRefused {
		t.Errorf("of another class: %v", got)
	}
}

// hostile are packets that are no questions.
func hostile() map[string][]byte {
	header := func(flags byte, questions, answers, additional byte) []byte {
		return []byte{0x12, 0x34, flags, 0, 0, questions, 0, answers, 0, 0, 0, additional}
	}
	all := map[string][]byte{
		"nothing":                            {},
		"one byte":                           {1},
		"half a header":                      header(0, 1, 0, 0)[:11],
		"a header":                           header(0, 1, 0, 0),
		"a reply":                            append(header(0x80, 1, 0, 0), "\x03web\x00\x00\x01\x00\x01"...),
		"a name that points at itself":       append(header(0, 1, 0, 0), 0xc0, 12, 0, 1, 0, 1),
		"two names that point at each other": append(header(0, 1, 0, 0), 0xc0, 14, 0xc0, 12, 0, 1, 0, 1),
		"a name that points beyond":          append(header(0, 1, 0, 0), 0xff, 0xff, 0, 1, 0, 1),
		"a label that is too long":           append(header(0, 1, 0, 0), bytes.Repeat([]byte{0x7f}, 200)...),
		"a name without end":                 append(header(0, 1, 0, 0), bytes.Repeat([]byte("\x01a"), 127)...),
		"a name that is too long":            append(append(header(0, 1, 0, 0), bytes.Repeat([]byte("\x01a"), 128)...), 0, 0, 1, 0, 1),
		"no question":                        header(0, 0, 0, 0),
		"two questions":                      append(header(0, 2, 0, 0), "\x03web\x00\x00\x01\x00\x01\x03web\x00\x00\x01\x00\x01"...),
		"65535 questions":                    {0, 1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1},
		"an answer":                          append(header(0, 1, 1, 0), "\x03web\x00\x00\x01\x00\x01\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04aaaa"...),
		"an update":                          append(header(5<<3, 1, 0, 0), "\x03web\x00\x00\x06\x00\x01"...),
		"a notification":                     append(header(4<<3, 1, 0, 0), "\x03web\x00\x00\x06\x00\x01"...),
		"an option that lies":                append(header(0, 1, 0, 1), "\x03web\x00\x00\x01\x00\x01\x00\x00\x29\xff\xff\x00\x00\x00\x00\xff\xff"...),
		"as long as can be":                  bytes.Repeat([]byte{0}, 65507),
	}
	return all
}

func TestHostilePackets(t *testing.T) {
	w := newWorld(t)
	w.run("default/web", "10.87.0.2/16")
	s := w.listed()
	at := opened(t, s)
	// A name of 255 bytes is good, if it is one.
	longest := strings.Repeat(strings.Repeat("a", 49)+".", 5)
	if got := answerOf(t, s, node, longest+"xx", dns.TypeA); got != "elsewhere" {
		t.Errorf("the longest name: %s", got)
	}
	if got := answerOf(t, s, node, longest[:len(longest)-50]+zone[1:], dns.TypeA); got != "NXDOMAIN" {
		t.Errorf("the longest name of the zone: %s", got)
	}
	before := runtime.NumGoroutine()
	for name, b := range hostile() {
		q, refusal := parse(b, netip.MustParseAddr(node), true)
		if q.msg != nil || len(refusal) > max(len(b), 0) {
			t.Errorf("%s: a question of %v, or %d bytes for %d", name, q.name, len(refusal), len(b))
		}
		c, err := net.Dial("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(b)
		c.Close()
		if c, err = net.Dial("tcp", at); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(append([]byte{byte(len(b) >> 8), byte(len(b))}, b...))
		c.Close()
	}
	if got := show(exchanged(t, "udp", at, asking("web.default"+zone, dns.TypeA))); got != "NOERROR 10.87.0.2" {
		t.Errorf("after it: %s", got)
	}
	eventually(t, "nothing goes on", func() error {
		if now := runtime.NumGoroutine(); now > before {
			return fmt.Errorf("%d goroutines, %d before", now, before)
		}
		return nil
	})
}

func FuzzPacket(f *testing.F) {
	for _, b := range hostile() {
		f.Add(b)
	}
	b, _ := asking("web.default"+zone, dns.TypeA).Pack()
	f.Add(b)
	w := newWorld(&testing.T{})
	w.run("default/web", "10.87.0.2/16")
	s := w.server()
	s.view.put(key{"default", "web"}, record{alive: true, running: true, addresses: []netip.Addr{netip.MustParseAddr("10.87.0.2")}})
	s.known = true
	f.Fuzz(func(t *testing.T, b []byte) {
		q, refusal := parse(b, netip.MustParseAddr("10.87.0.2"), true)
		if q.msg == nil {
			if len(refusal) > len(b) {
				t.Errorf("%d bytes are refused with %d", len(b), len(refusal))
			}
			return
		}
		m, what := s.local(q)
		if what != answered {
			return
		}
		reply := q.pack(m, true)
		if len(reply) > q.size {
			t.Errorf("a reply of %d bytes, of which %d are wanted", len(reply), q.size)
		}
		if err := new(dns.Msg).Unpack(reply); err != nil {
			t.Error(err)
		}
	})
}

// TestWhoIsNotKnownYetIsWaitedFor has a container ask before dnsd is told of it.
func TestWhoIsNotKnownYetIsWaitedFor(t *testing.T) {
	w := newWorld(t)
	w.run("default/web", "10.87.0.2/16")
	s := w.listed()
	b, err := asking("web", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	q, _ := parse(b, netip.MustParseAddr("10.87.0.9"), true)
	got := make(chan string)
	go func() { got <- show(s.slow(t.Context(), q, unknown)) }()
	w.hear(s, "default/late", event.ContainerUpdate{ID: "late", Labels: map[string]string{network.LabelAddresses: "10.87.0.9/16"}})
	if got := <-got; got != "NOERROR 10.87.0.2" {
		t.Errorf("one that came late is told %s", got)
	}
	q.from = netip.MustParseAddr("10.87.0.10")
	if got := show(s.slow(t.Context(), q, unknown)); got != "REFUSED" {
		t.Errorf("one that is nobody is told %s", got)
	}
}

func TestWhoIsNowhereIsNotAnswered(t *testing.T) {
	w := newWorld(t)
	w.run("default/far", "192.0.2.7/24")
	s := w.listed()
	for from, want := range map[string]bool{
		"127.0.0.1": true, "::1": true, node: true, "10.87.200.1": true, "fd00::77": true, "192.0.2.7": true,
		"192.0.2.8": false, "10.88.0.1": false, "8.8.8.8": false, "fe80::1": false,
	} {
		if got := s.serves(netip.MustParseAddr(from)); got != want {
			t.Errorf("%s is answered: %t", from, got)
		}
	}
}

func TestSourcesAreBounded(t *testing.T) {
	s := newSources()
	now := time.Unix(1e9, 0)
	a, b := netip.MustParseAddr("10.87.0.2"), netip.MustParseAddr("10.87.0.3")
	n := 0
	for range 3 * sourceRate {
		if s.allow(a, now) {
			n++
		}
	}
	if n != sourceRate || !s.allow(b, now) {
		t.Errorf("%d of %d questions at once, and those of another are counted with them", n, 3*sourceRate)
	}
	if !s.allow(a, now.Add(10*time.Millisecond)) {
		t.Error("there is no going on")
	}
	for i := range sourceSlow + 1 {
		if got := s.enter(a, now); got != (i < sourceSlow) {
			t.Errorf("slow question %d: %t", i, got)
		}
	}
	for i := range sourceConns + 1 {
		if got := s.connect(a, now); got != (i < sourceConns) {
			t.Errorf("connection %d: %t", i, got)
		}
	}
	flood := netip.MustParseAddr("10.87.1.0")
	for range 3 * sourcesMax {
		s.allow(flood, now)
		flood = flood.Next()
	}
	if len(s.all) > sourcesMax || !s.allow(b, now) {
		t.Errorf("%d sources are known", len(s.all))
	}
	if !s.allow(flood, now.Add(2*time.Second)) {
		t.Error("when all are silent, nobody new is heard")
	}
	s.leave(a)
	s.hangUp(a)
	if !s.enter(a, now) || !s.connect(a, now) {
		t.Error("what was given back is not there")
	}
}

// A fakeSockets listens on the loopback, whatever it is asked for.
type fakeSockets struct {
	mu   sync.Mutex
	at   map[netip.AddrPort]string
	fail error
}

func (f *fakeSockets) Listen(ctx context.Context, at netip.AddrPort) (*net.UDPConn, net.Listener, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, nil, f.fail
	}
	packets, streams, err := kernel{}.Listen(ctx, netip.MustParseAddrPort("127.0.0.1:0"))
	if err == nil {
		f.at[at] = packets.LocalAddr().String()
	}
	return packets, streams, err
}

// TestDoorsAreWhereNetworksAre follows netd's networks, and an address that is
// taken for a while.
func TestDoorsAreWhereNetworksAre(t *testing.T) {
	w := newWorld(t)
	w.run("default/web", "10.87.0.2/16")
	s := w.listed()
	fake := &fakeSockets{at: make(map[netip.AddrPort]string), fail: errors.New("taken")}
	s.sockets, s.cfg.Networks = fake, t.TempDir()
	open := make(map[netip.AddrPort]*door)
	refresh := func(want ...string) map[string]error {
		t.Helper()
		troubles := s.refresh(t.Context(), open)
		if len(open) != len(want) {
			t.Errorf("%d doors are open, want %v", len(open), want)
		}
		for _, at := range want {
			if open[netip.MustParseAddrPort(at)] == nil {
				t.Errorf("no door at %s", at)
			}
		}
		return troubles
	}
	nodes := func(all ...string) {
		t.Helper()
		var nodes []netip.Prefix
		for _, p := range all {
			nodes = append(nodes, netip.MustParsePrefix(p))
		}
		if err := network.WriteNodes(s.cfg.Networks, nodes); err != nil {
			t.Fatal(err)
		}
	}
	refresh()
	nodes("10.87.0.1/16", "fd00::1/64")
	if troubles := refresh(); len(troubles) != 1 {
		t.Errorf("an address that is taken: %v", troubles)
	}
	fake.fail = nil
	refresh("10.87.0.1:53", "[fd00::1]:53")
	if got := show(exchanged(t, "udp", fake.at[netip.MustParseAddrPort("10.87.0.1:53")], asking("web.default"+zone, dns.TypeA))); got != "NOERROR 10.87.0.2" {
		t.Errorf("it says %s", got)
	}
	// One breaks, and is opened again.
	open[netip.MustParseAddrPort("10.87.0.1:53")].packets.Close()
	eventually(t, "the door is broken", func() error {
		if !open[netip.MustParseAddrPort("10.87.0.1:53")].broken() {
			return errors.New("it is not")
		}
		return nil
	})
	refresh("10.87.0.1:53", "[fd00::1]:53")
	// A file that is half a file changes nothing.
	if err := os.WriteFile(filepath.Join(s.cfg.Networks, ".nodes"), []byte("10.87.0.1/16\n10.8"), 0o600); err != nil {
		t.Fatal(err)
	}
	if troubles := refresh("10.87.0.1:53", "[fd00::1]:53"); len(troubles) != 1 {
		t.Errorf("half a file: %v", troubles)
	}
	nodes("10.9.0.1/16")
	refresh("10.9.0.1:53")
	s.cfg.Listen = []string{"127.0.0.1:5353"}
	refresh("10.9.0.1:53", "127.0.0.1:5353")
	for _, d := range open {
		d.close()
	}
}

// TestAnAddressThatIsNotThereIsListenedOn holds that a bridge may come later.
func TestAnAddressThatIsNotThereIsListenedOn(t *testing.T) {
	for _, at := range []string{"198.51.100.77:0", "[2001:db8::77]:0"} {
		packets, streams, err := kernel{}.Listen(t.Context(), netip.MustParseAddrPort(at))
		if err != nil {
			if strings.HasPrefix(at, "[") && !hasIPv6() {
				continue
			}
			t.Fatal(err)
		}
		packets.Close()
		streams.Close()
	}
}

func hasIPv6() bool {
	_, err := os.Stat("/proc/net/if_inet6")
	return err == nil
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for over := time.Now().Add(20 * time.Second); time.Now().Before(over); {
		if err = f(); err == nil {
			return
		}
		<-time.After(5 * time.Millisecond)
	}
	t.Fatalf("%s: %v", what, err)
}
