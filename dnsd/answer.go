package dnsd

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// An outcome is what is known of a question without asking anybody.
type outcome int

const (
	answered  outcome = iota
	elsewhere         // it is for another server
	unknown           // who asks may be a container of which we are just being told
)

// local answers what is ours to answer. No question about a container is ever
// another's, whether there is an answer or not.
func (s *Server) local(q question) (*dns.Msg, outcome) {
	if m := q.refused(); m != nil {
		return m, answered
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	block, exact, backwards := reverse(q.name)
	switch {
	case backwards && s.ownsLocked(block):
	case dns.IsSubDomain(s.zone, q.name):
		backwards = false
	case !backwards && dns.CountLabel(q.name) == 1:
	default:
		return nil, elsewhere
	}
	if !s.freshLocked() {
		return q.reply(dns.RcodeServerFailure), answered
	}
	e, known := s.eyesLocked(q.from)
	if !known {
		return nil, unknown
	}
	if backwards {
		return s.pointerLocked(q, block, exact, e), answered
	}
	return s.nameLocked(q, e), answered
}

// ownsLocked says whether the names of addresses are ours: those of the networks
// and of containers.
func (s *Server) ownsLocked(block netip.Prefix) bool {
	for _, p := range s.nodes {
		if p.Bits() <= block.Bits() && p.Contains(block.Addr()) {
			return true
		}
	}
	return block.IsSingleIP() && len(s.view.byAddress[block.Addr()]) > 0
}

// nameLocked answers for a name of the zone, or of one part.
func (s *Server) nameLocked(q question, e eyes) *dns.Msg {
	if q.name == s.zone {
		if q.msg.Question[0].Qtype == dns.TypeSOA {
			m := s.replyLocked(q, dns.RcodeSuccess)
			m.Answer, m.Ns = m.Ns, nil
			return m
		}
		return s.replyLocked(q, dns.RcodeSuccess)
	}
	folded := fold(strings.TrimSuffix(q.name, "."), e.namespace)
	if dns.IsSubDomain(s.zone, q.name) {
		folded = strings.TrimSuffix(q.name, "."+s.zone)
	}
	addresses, ok := s.view.lookup(folded, e)
	switch {
	case ok:
	case s.view.spaces[fold("", folded)] > 0 && (e.node || strings.EqualFold(e.namespace, folded)):
		return s.replyLocked(q, dns.RcodeSuccess) // a namespace: there are names below it
	default:
		return s.replyLocked(q, dns.RcodeNameError)
	}
	m := s.replyLocked(q, dns.RcodeSuccess)
	header := dns.RR_Header{Name: q.msg.Question[0].Name, Class: dns.ClassINET, Ttl: s.ttl()}
	for _, a := range addresses {
		switch header.Rrtype = q.msg.Question[0].Qtype; {
		case a.Is4() && header.Rrtype == dns.TypeA:
			m.Answer = append(m.Answer, &dns.A{Hdr: header, A: a.AsSlice()})
		case a.Is6() && header.Rrtype == dns.TypeAAAA:
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
		}
	}
	if len(m.Answer) > 0 {
		m.Ns = nil
	}
	return m
}

// pointerLocked answers for the name of an address.
func (s *Server) pointerLocked(q question, block netip.Prefix, exact bool, e eyes) *dns.Msg {
	if exact && !block.IsSingleIP() {
		return s.replyLocked(q, dns.RcodeSuccess) // there are names below it
	}
	k, ok := s.view.holder(block.Addr())
	r := s.view.records[k]
	if !ok || !exact || !r.running || !e.see(k.namespace) || !named(k.container) {
		return s.replyLocked(q, dns.RcodeNameError)
	}
	m := s.replyLocked(q, dns.RcodeSuccess)
	if q.msg.Question[0].Qtype == dns.TypePTR {
		m.Ns = nil
		m.Answer = []dns.RR{&dns.PTR{
			Hdr: dns.RR_Header{Name: q.msg.Question[0].Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: s.ttl()},
			Ptr: k.container + "." + k.namespace + "." + s.zone,
		}}
	}
	return m
}

func (s *Server) ttl() uint32 { return uint32(s.cfg.TTLSeconds) }

// replyLocked begins a reply of ours, with what says for how long there is no
// answer.
func (s *Server) replyLocked(q question, code int) *dns.Msg {
	m := q.reply(code)
	m.Authoritative = true
	owner := s.zone
	if !dns.IsSubDomain(s.zone, q.name) {
		// The zone that a single name or an address is in has to be above it.
		owner = "."
		if labels := dns.SplitDomainName(q.name); len(labels) > 2 {
			owner = strings.Join(labels[len(labels)-2:], ".") + "."
		}
	}
	m.Ns = []dns.RR{&dns.SOA{
		Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: s.ttl()},
		Ns:  "ns." + s.zone, Mbox: "hostmaster." + s.zone,
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: s.ttl(),
	}}
	return m
}

// patience is how long a question waits until it is known who asks. A container
// may ask before we are told that there is it.
const patience = time.Second

// slow answers what takes time: what another server is asked, and who is not
// known yet.
func (s *Server) slow(ctx context.Context, q question, what outcome) *dns.Msg {
	if what == elsewhere {
		return s.forward(ctx, q)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if m, what := s.local(q); what != unknown {
			return m
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return q.reply(dns.RcodeRefused)
		}
	}
}
