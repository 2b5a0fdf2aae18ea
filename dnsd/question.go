package dnsd

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// Sizes of messages.
const (
	headerSize = 12
	queryMax   = 4096 // of what is read; nobody asks in more
	replyMin   = dns.MinMsgSize
	replyMax   = 1232 // by UDP: what no network cuts into pieces
)

// A question is a message that can be answered.
type question struct {
	msg  *dns.Msg
	name string // of its one question, as dns.CanonicalName has it
	from netip.Addr
	size int // of a reply, at most
	edns bool
}

// parse reads a message. What is no question gets a refusal or, if that could
// make two servers talk for ever, nothing.
func parse(b []byte, from netip.Addr, udp bool) (q question, refusal []byte) {
	if len(b) < headerSize || b[2]&0x80 != 0 { // a reply
		return q, nil
	}
	q = question{msg: new(dns.Msg), from: from, size: dns.MaxMsgSize}
	if err := q.msg.Unpack(b); err != nil || len(q.msg.Question) != 1 || len(q.msg.Answer)+len(q.msg.Ns) > 0 || len(q.msg.Extra) > 2 {
		return question{}, refuse(b, dns.RcodeFormatError)
	}
	if q.msg.Opcode != dns.OpcodeQuery {
		return question{}, refuse(b, dns.RcodeNotImplemented)
	}
	q.name = dns.CanonicalName(q.msg.Question[0].Name)
	o := q.msg.IsEdns0()
	q.edns = o != nil
	if udp {
		q.size = replyMin
		if q.edns {
			q.size = min(max(replyMin, int(o.UDPSize())), replyMax)
		}
	}
	return q, nil
}

// refuse is a header with a code, which is never longer than what it answers.
func refuse(b []byte, code int) []byte {
	h := append([]byte(nil), b[:headerSize]...)
	h[2] = h[2]&0x79 | 0x80 // opcode and RD stay
	h[3] = byte(code)
	clear(h[4:])
	return h
}

// reply begins a reply.
func (q question) reply(code int) *dns.Msg {
	m := new(dns.Msg)
	m.SetRcode(q.msg, code)
	return m
}

// pack is a reply as it is sent.
func (q question) pack(m *dns.Msg, forwards bool) []byte {
	m.RecursionAvailable = forwards
	m.Compress = true
	if q.edns {
		o := q.msg.IsEdns0()
		m.SetEdns0(replyMax, o.Do())
		if o.Version() != 0 {
			m.Answer, m.Ns, m.Rcode = nil, nil, dns.RcodeBadVers
		}
	}
	m.Truncate(q.size)
	b, err := m.Pack()
	if err != nil || len(b) > q.size {
		b, _ = q.reply(dns.RcodeServerFailure).Pack()
	}
	return b
}

// refused is what is answered to nobody: what is large, and what is no question
// of names.
func (q question) refused() *dns.Msg {
	asked := q.msg.Question[0]
	switch {
	case asked.Qtype == dns.TypeANY:
		return q.reply(dns.RcodeNotImplemented)
	case asked.Qclass != dns.ClassINET, asked.Qtype == dns.TypeAXFR, asked.Qtype == dns.TypeIXFR,
		asked.Qtype == dns.TypeMAILA, asked.Qtype == dns.TypeMAILB, asked.Qtype == dns.TypeOPT, asked.Qtype == dns.TypeTKEY:
		return q.reply(dns.RcodeRefused)
	}
	return nil
}

// reverse reads the name of an address, or of a block of them.
func reverse(name string) (p netip.Prefix, exact, ok bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		return block(strings.Split(rest, "."), 4, 8, 10)
	}
	if rest, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		return block(strings.Split(rest, "."), 32, 4, 16)
	}
	return p, false, false
}

// block makes a prefix of parts that are bits long each and written in base, the
// last first. It goes as far as they are numbers; exact is all the way.
func block(parts []string, most, bits, base int) (p netip.Prefix, exact, ok bool) {
	var raw [16]byte
	n := 0
	for i := len(parts) - 1; i >= 0 && n < most; i-- {
		v, err := strconv.ParseUint(parts[i], base, bits)
		if err != nil || strconv.FormatUint(v, base) != parts[i] {
			break
		}
		at := n * bits
		raw[at/8] |= byte(v << (8 - bits - at%8))
		n++
	}
	if n == 0 {
		return p, false, false
	}
	addr := netip.AddrFrom16(raw)
	if most == 4 {
		addr = netip.AddrFrom4([4]byte(raw[:4]))
	}
	return netip.PrefixFrom(addr, n*bits), n == len(parts), true
}
