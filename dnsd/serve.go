package dnsd

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"

	"github.com/gantryd/gantry/services/network"
)

// lookTime is between two looks for networks that are new, and for upstreams
// that are others.
const lookTime = 2 * time.Second

// dnsPort is the one that resolv.conf cannot change.
const dnsPort = 53

// Serve answers on the addresses that there are, until ctx ends.
func (s *Server) Serve(ctx context.Context) error {
	tick := time.NewTicker(lookTime)
	defer tick.Stop()
	open := make(map[netip.AddrPort]*door)
	defer func() {
		for _, d := range open {
			d.close()
		}
	}()
	said := make(map[string]bool) // what was logged, and is still so
	for {
		troubles := s.refresh(ctx, open)
		for text, err := range troubles {
			if !said[text] {
				s.log.WarnContext(ctx, "dnsd does less than it is to", "err", err)
			}
		}
		clear(said)
		for text := range troubles {
			said[text] = true
		}
		s.judge(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// refresh opens and closes doors, so that they are where they are wanted.
func (s *Server) refresh(ctx context.Context, open map[netip.AddrPort]*door) map[string]error {
	troubles := make(map[string]error)
	note := func(err error) {
		if err != nil {
			troubles[err.Error()] = err
		}
	}
	nodes, err := network.ReadNodes(s.cfg.Networks)
	note(err)
	s.mu.Lock()
	if err == nil {
		s.nodes = nodes
	}
	nodes = s.nodes
	s.mu.Unlock()
	want := s.addresses(nodes)
	if s.cfg.Forward {
		upstreams, err := s.findUpstreams(want)
		note(err)
		s.mu.Lock()
		if err == nil {
			s.upstreams = upstreams
		}
		s.mu.Unlock()
	}
	for at, d := range open {
		if !slices.Contains(want, at) || d.broken() {
			d.close()
			delete(open, at)
		}
	}
	for _, at := range want {
		if open[at] != nil {
			continue
		}
		packets, streams, err := s.sockets.Listen(ctx, at)
		if err != nil {
			note(err)
			continue
		}
		open[at] = s.openDoor(ctx, packets, streams)
		s.log.InfoContext(ctx, "names are answered", "address", at.String())
	}
	return troubles
}

// addresses are where it is to be answered.
func (s *Server) addresses(nodes []netip.Prefix) []netip.AddrPort {
	all := make(map[netip.AddrPort]bool)
	for _, a := range s.cfg.Listen {
		if at, err := netip.ParseAddrPort(a); err == nil {
			all[at] = true
		}
	}
	for _, p := range nodes {
		all[netip.AddrPortFrom(p.Addr(), dnsPort)] = true
	}
	return slices.Collect(maps.Keys(all))
}

// A door is one address that is listened on.
type door struct {
	s       *Server
	packets *net.UDPConn
	streams net.Listener
	work    sync.WaitGroup
	ctx     context.Context // of what it does
	end     context.CancelCauseFunc
}

var errClosed = errors.New("the door is closed")

func (s *Server) openDoor(ctx context.Context, packets *net.UDPConn, streams net.Listener) *door {
	d := &door{s: s, packets: packets, streams: streams}
	d.ctx, d.end = context.WithCancelCause(ctx)
	d.work.Go(func() { d.end(d.readPackets()) })
	d.work.Go(func() { d.end(d.accept()) })
	return d
}

func (d *door) broken() bool { return d.ctx.Err() != nil }

func (d *door) close() {
	d.end(errClosed)
	d.packets.Close()
	d.streams.Close()
	d.work.Wait()
}

// readPackets answers one packet after the other. What takes time is done by
// others, of which there are so many and no more.
func (d *door) readPackets() error {
	b := make([]byte, queryMax+1)
	for {
		n, peer, err := d.packets.ReadFromUDPAddrPort(b)
		if err != nil {
			return err // it is opened again
		}
		if n > queryMax {
			continue
		}
		from := peer.Addr().Unmap()
		if !d.s.serves(from) || !d.s.sources.allow(from, d.s.now()) {
			continue
		}
		send := func(reply []byte) {
			if len(reply) > 0 {
				_, _ = d.packets.WriteToUDPAddrPort(reply, peer)
			}
		}
		q, refusal := parse(b[:n], from, true)
		if q.msg == nil {
			send(refusal)
			continue
		}
		m, what := d.s.local(q)
		if what == answered {
			send(q.pack(m, d.s.cfg.Forward))
			continue
		}
		if !d.s.sources.enter(from, d.s.now()) {
			send(q.pack(q.reply(dns.RcodeServerFailure), d.s.cfg.Forward))
			continue
		}
		d.work.Go(func() {
			defer d.s.sources.leave(from)
			send(q.pack(d.s.slow(d.ctx, q, what), d.s.cfg.Forward))
		})
	}
}

// Limits of a connection.
const (
	idleTime = 5 * time.Second // between two questions, and for one
	asksMax  = 100             // questions
)

func (d *door) accept() error {
	for {
		c, err := d.streams.Accept()
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			// No descriptors are left, say: soon there are.
			select {
			case <-d.ctx.Done():
				return err
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		peer, err := netip.ParseAddrPort(c.RemoteAddr().String())
		from := peer.Addr().Unmap()
		if err != nil || !d.s.serves(from) || !d.s.sources.connect(from, d.s.now()) {
			c.Close()
			continue
		}
		d.work.Go(func() {
			defer d.s.sources.hangUp(from)
			defer c.Close()
			stop := context.AfterFunc(d.ctx, func() { c.Close() })
			defer stop()
			for range asksMax {
				if d.converse(c, from) != nil {
					return
				}
			}
		})
	}
}

// converse answers one question of a connection.
func (d *door) converse(c net.Conn, from netip.Addr) error {
	if err := c.SetDeadline(time.Now().Add(idleTime)); err != nil {
		return err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n > queryMax {
		return errdefs.ErrInvalidArgument
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if !d.s.sources.allow(from, d.s.now()) {
		return errdefs.ErrResourceExhausted
	}
	q, reply := parse(b, from, false)
	if q.msg != nil {
		m, what := d.s.local(q)
		if what != answered {
			if !d.s.sources.enter(from, d.s.now()) {
				return errdefs.ErrResourceExhausted
			}
			m = d.s.slow(d.ctx, q, what)
			d.s.sources.leave(from)
		}
		reply = q.pack(m, d.s.cfg.Forward)
	}
	if len(reply) == 0 {
		return errdefs.ErrInvalidArgument
	}
	if err := c.SetDeadline(time.Now().Add(idleTime)); err != nil {
		return err
	}
	_, err := c.Write(binary.BigEndian.AppendUint16(nil, uint16(len(reply))))
	if err == nil {
		_, err = c.Write(reply)
	}
	return err
}
