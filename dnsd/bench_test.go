package dnsd

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// BenchmarkAnswer is a question and its answer without the socket, with ten
// thousand containers.
func BenchmarkAnswer(b *testing.B) {
	w := newWorld(&testing.T{})
	s := w.server()
	s.known = true
	for i := range 10_000 {
		at := netip.AddrFrom4([4]byte{10, 87, byte(1 + i/250), byte(1 + i%250)})
		s.view.put(key{"default", fmt.Sprintf("c%d", i)}, record{alive: true, running: true, addresses: []netip.Addr{at}})
	}
	packet, err := asking("c9999", dns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	from := netip.MustParseAddr("10.87.1.1")
	for b.Loop() {
		q, _ := parse(packet, from, true)
		m, what := s.local(q)
		if what != answered || len(q.pack(m, true)) == 0 || len(m.Answer) != 1 {
			b.Fatal(m)
		}
	}
}
