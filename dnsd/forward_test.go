package dnsd

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// upstream is a server that answers as f says, by UDP and TCP.
func upstream(t *testing.T, f dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	packets, streams, err := kernel{}.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	for _, srv := range []*dns.Server{{PacketConn: packets, Handler: f}, {Listener: streams, Handler: f}} {
		var work sync.WaitGroup
		work.Go(func() { _ = srv.ActivateAndServe() })
		t.Cleanup(func() { packets.Close(); streams.Close(); work.Wait() })
	}
	return netip.MustParseAddrPort(packets.LocalAddr().String())
}

func forwarding(t *testing.T, upstreams ...netip.AddrPort) string {
	t.Helper()
	s := newWorld(t).listed()
	s.cfg.Forward, s.upstreams = true, upstreams
	return opened(t, s)
}

func TestForwarding(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	good := upstream(t, func(w dns.ResponseWriter, m *dns.Msg) {
		mu.Lock()
		asked = append(asked, w.RemoteAddr().Network()+" "+m.Question[0].Name)
		if o := m.IsEdns0(); o == nil || len(o.Option) > 0 {
			t.Errorf("it is asked with %v", o)
		}
		mu.Unlock()
		r := new(dns.Msg)
		r.SetReply(m)
		r.RecursionAvailable = true
		switch {
		case strings.HasPrefix(m.Question[0].Name, "long."):
			for i := range 40 {
				r.Answer = append(r.Answer, &dns.TXT{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{fmt.Sprint(i, strings.Repeat("x", 90))}})
			}
			if w.RemoteAddr().Network() == "udp" {
				r.Truncate(dns.MinMsgSize)
			}
		case strings.HasPrefix(m.Question[0].Name, "forged."):
			// Answers to other questions come first.
			for _, change := range []func(*dns.Msg){func(m *dns.Msg) { m.Id++ }, func(m *dns.Msg) { m.Question[0].Name = "other." }, func(m *dns.Msg) { m.Response = false }} {
				lie := r.Copy()
				lie.Rcode = dns.RcodeNameError
				change(lie)
				_ = w.WriteMsg(lie)
			}
		case strings.HasPrefix(m.Question[0].Name, "missing."):
			r.Rcode = dns.RcodeNameError
		}
		r.SetEdns0(4096, false)
		_ = w.WriteMsg(r)
	})
	failing := upstream(t, func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg)
		r.SetRcode(m, dns.RcodeServerFailure)
		_ = w.WriteMsg(r)
	})
	at := forwarding(t, failing, good)
	m := asking("forged.example.com", dns.TypeA)
	m.SetEdns0(4096, false)
	m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"}}
	if got := exchanged(t, "udp", at, m); got.Rcode != dns.RcodeSuccess || !got.RecursionAvailable || got.IsEdns0() == nil {
		t.Errorf("the second of two: %v", got)
	}
	if got := exchanged(t, "udp", at, asking("missing.example.com", dns.TypeA)); got.Rcode != dns.RcodeNameError || got.IsEdns0() != nil {
		t.Errorf("what is missing: %v", got)
	}
	m = asking("long.example.com", dns.TypeTXT)
	if got := exchanged(t, "udp", at, m); !got.Truncated {
		t.Errorf("what is long, by UDP: %v", got)
	}
	if got := exchanged(t, "tcp", at, m); got.Truncated || len(got.Answer) != 40 {
		t.Errorf("what is long, by TCP: %d answers", len(got.Answer))
	}
	// None of ours is asked of anybody.
	for _, name := range []string{"web", "web.default" + zone, "gantry.internal", "2.0.87.10.in-addr.arpa", "x.2.0.87.10.in-addr.arpa", "com"} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeTXT, dns.TypeNS, dns.TypeDS} {
			exchanged(t, "udp", at, asking(name, qtype))
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for _, a := range asked {
		if !strings.HasSuffix(a, ".example.com.") {
			t.Errorf("another server is asked for %s", a)
		}
	}
	at = opened(t, newWorld(t).listed())
	if got := exchanged(t, "udp", at, asking("example.com", dns.TypeA)); got.Rcode != dns.RcodeRefused || got.RecursionAvailable {
		t.Errorf("without forwarding: %v", got)
	}
}

// TestASilentUpstreamHoldsUpNobodyElse has one source ask more than may wait.
// Names of containers are answered meanwhile.
func TestASilentUpstreamHoldsUpNobodyElse(t *testing.T) {
	hears := make(chan struct{}, 1000)
	release := make(chan struct{})
	silent := upstream(t, func(dns.ResponseWriter, *dns.Msg) { hears <- struct{}{}; <-release })
	defer close(release)
	at := forwarding(t, silent)
	c, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, err := asking("example.com", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for range sourceSlow {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		<-hears
	}
	before := runtime.NumGoroutine()
	for range 3 * sourceSlow {
		_, _ = c.Write(b)
	}
	if got := exchanged(t, "udp", at, asking("example.com", dns.TypeA)); got.Rcode != dns.RcodeServerFailure {
		t.Errorf("one more: %v", got)
	}
	if now := runtime.NumGoroutine(); now > before {
		t.Errorf("a flood makes %d goroutines of %d", now, before)
	}
	if got := exchanged(t, "udp", at, asking("web", dns.TypeA)); got.Rcode != dns.RcodeNameError {
		t.Errorf("a name of ours: %v", got)
	}
	if len(hears) > 0 {
		t.Error("one more is asked of the upstream")
	}
}

func TestUpstreams(t *testing.T) {
	s := newWorld(t).server()
	s.cfg.ResolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	if _, err := s.findUpstreams(nil); err == nil {
		t.Error("no resolv.conf is no error")
	}
	text := "# a comment\nnameserver 10.87.0.1\nnameserver x\nnameserver 192.0.2.1\nnameserver ::1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n"
	if err := os.WriteFile(s.cfg.ResolvConf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ours := []netip.AddrPort{netip.MustParseAddrPort("10.87.0.1:53")}
	got, err := s.findUpstreams(ours)
	if want := "[192.0.2.1:53 [::1]:53 192.0.2.2:53]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v, %v, want %s", got, err, want)
	}
	s.cfg.Upstreams = []string{"10.87.0.1", "192.0.2.9:5353"}
	if got, err = s.findUpstreams(ours); err != nil || fmt.Sprint(got) != "[192.0.2.9:5353]" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestConfig(t *testing.T) {
	if err := Default().Check(); err != nil {
		t.Error(err)
	}
	err := Config{
		Zone: "a..b", Listen: []string{"x"}, Networks: "a", TTLSeconds: -1, StaleSeconds: -1,
		Upstreams: []string{"x", "1", "2", "3"}, ResolvConf: "b",
	}.Check()
	for _, want := range []string{`zone: "a..b"`, `listen: "x"`, `networks: "a"`, "ttl_seconds: -1", "stale_seconds: -1", `upstreams: "x"`, "upstreams: more than 3", `resolv_conf: "b"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to say %s", err, want)
		}
	}
	for _, zone := range []string{"", ".", "in-addr.arpa", strings.Repeat("a", 64), strings.Repeat("a.", 60), `a\.b`} {
		c := Default()
		c.Zone = zone
		if c.Check() == nil {
			t.Errorf("%q may be a zone", zone)
		}
	}
}
