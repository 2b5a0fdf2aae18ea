package dnsd

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"
)

// Limits of asking others.
const (
	upstreamsMax = 3
	upstreamTime = 2 * time.Second // one server, by UDP or TCP
	forwardTime  = 5 * time.Second // all of them
)

// forward asks the upstreams, one after the other, until one knows.
func (s *Server) forward(ctx context.Context, q question) *dns.Msg {
	s.mu.Lock()
	upstreams := s.upstreams
	s.mu.Unlock()
	if !s.cfg.Forward {
		return q.reply(dns.RcodeRefused)
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTime)
	defer cancel()
	last := q.reply(dns.RcodeServerFailure)
	for _, up := range upstreams {
		m, err := ask(ctx, q, up)
		if err != nil {
			s.log.Debug("an upstream does not answer", "upstream", up.String(), "err", err)
			continue
		}
		m.Id, m.Question = q.msg.Id, q.msg.Question
		m.Authoritative = false
		if m.Rcode != dns.RcodeServerFailure && m.Rcode != dns.RcodeRefused && m.Rcode != dns.RcodeNotImplemented {
			return m
		}
		last = m
	}
	return last
}

// ask asks one upstream, by UDP and, if the answer is too long for that, by TCP.
// It is asked the question and no more: what else was in the message is between
// who asks and us.
func ask(ctx context.Context, q question, up netip.AddrPort) (*dns.Msg, error) {
	asked := new(dns.Msg)
	asked.Id = dns.Id()
	asked.Question = q.msg.Question
	asked.RecursionDesired = q.msg.RecursionDesired
	asked.CheckingDisabled = q.msg.CheckingDisabled
	asked.AuthenticatedData = q.msg.AuthenticatedData
	asked.SetEdns0(replyMax, q.edns && q.msg.IsEdns0().Do())
	for _, network := range []string{"udp", "tcp"} {
		m, err := exchange(ctx, network, asked, up)
		if err != nil {
			return nil, err
		}
		if m.Truncated && network == "udp" {
			continue
		}
		m.Extra = slices.DeleteFunc(m.Extra, func(r dns.RR) bool { return r.Header().Rrtype == dns.TypeOPT })
		return m, nil
	}
	return nil, fmt.Errorf("%s: %w", up, errdefs.ErrUnavailable)
}

// exchange asks from a port of its own, and takes as the answer only what has
// the number and the words of the question.
func exchange(ctx context.Context, network string, asked *dns.Msg, up netip.AddrPort) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamTime)
	defer cancel()
	inner, err := (&net.Dialer{}).DialContext(ctx, network, up.String())
	if err != nil {
		return nil, err
	}
	defer inner.Close()
	stop := context.AfterFunc(ctx, func() { inner.Close() })
	defer stop()
	c := &dns.Conn{Conn: inner, UDPSize: queryMax}
	if err := c.WriteMsg(asked); err != nil {
		return nil, err
	}
	for {
		m, err := c.ReadMsg()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil && m == nil {
			return nil, err
		}
		if err == nil && m.Id == asked.Id && m.Response && len(m.Question) == 1 &&
			strings.EqualFold(m.Question[0].Name, asked.Question[0].Name) &&
			m.Question[0].Qtype == asked.Question[0].Qtype && m.Question[0].Qclass == asked.Question[0].Qclass {
			return m, nil
		}
		if network == "tcp" {
			return nil, fmt.Errorf("%s: not an answer to what was asked: %w", up, errdefs.ErrInvalidArgument)
		}
	}
}

// parseUpstream reads an address with or without a port.
func parseUpstream(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	return netip.ParseAddrPort(s)
}

// findUpstreams reads who is asked. Whoever is one of ours would ask us.
func (s *Server) findUpstreams(ours []netip.AddrPort) ([]netip.AddrPort, error) {
	names := s.cfg.Upstreams
	if len(names) == 0 {
		c, err := dns.ClientConfigFromFile(s.cfg.ResolvConf)
		if err != nil {
			return nil, fmt.Errorf("upstreams: %w", err)
		}
		names = c.Servers
	}
	var all []netip.AddrPort
	for _, n := range names {
		up, err := parseUpstream(n)
		if err == nil && !slices.Contains(ours, up) && len(all) < upstreamsMax {
			all = append(all, up)
		}
	}
	return all, nil
}
