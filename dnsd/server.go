package dnsd

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/task"
)

// Needs are what a Server asks of others.
type Needs struct {
	Namespaces namespace.Store  // to list them
	Containers container.Stores // to list and get them
	Tasks      task.Services    // likewise
	Log        *slog.Logger
}

// A Server answers questions about containers.
type Server struct {
	cfg     Config
	needs   Needs
	log     *slog.Logger
	zone    string // as it is in questions
	sockets sockets
	now     func() time.Time
	sources sources
	turn    chan struct{} // of who asks taskd

	// mu guards the fields below it. It is held across nothing.
	mu        sync.Mutex
	view      view
	known     bool           // there was a list
	ticks     uint64         // the view's clock: one for each question to taskd
	due       map[key]uint64 // to be asked about, and when that became so
	busAway   time.Time      // since when; zero if it is there
	taskAway  time.Time
	stale     bool           // answers have been stopped, and that is logged
	nodes     []netip.Prefix // the node's addresses in networks
	upstreams []netip.AddrPort
	changed   chan struct{} // closed when the view is another
	wake      chan struct{} // something became due
}

// New returns a server that knows nothing yet. Its work is [Server.Serve],
// [Server.Look] and a subscription to events; see [Subjects].
func New(cfg Config, needs Needs) *Server { return newServer(cfg, needs, kernel{}) }

func newServer(cfg Config, needs Needs, k sockets) *Server {
	if needs.Log == nil {
		needs.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		cfg: cfg, needs: needs, log: needs.Log, sockets: k, now: time.Now,
		zone:    dns.CanonicalName(cfg.Zone),
		sources: newSources(),
		view:    newView(),
		stale:   true,
		turn:    make(chan struct{}, 1),
		due:     make(map[key]uint64),
		changed: make(chan struct{}),
		wake:    make(chan struct{}, 1),
	}
}

// change has f change what is known, and tells who waits for it.
func (s *Server) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// freshLocked says whether what is known is good enough to be told.
func (s *Server) freshLocked() bool {
	over := func(since time.Time) bool { return !since.IsZero() && s.now().Sub(since) > s.cfg.staleTime() }
	return s.known && !over(s.busAway) && !over(s.taskAway)
}

// eyesLocked returns who an address is. An address that the node has and one of
// its loopback are the node.
func (s *Server) eyesLocked(from netip.Addr) (e eyes, known bool) {
	if from.IsLoopback() {
		return eyes{node: true}, true
	}
	for _, p := range s.nodes {
		if p.Addr() == from {
			return eyes{node: true}, true
		}
	}
	k, ok := s.view.holder(from)
	return eyes{namespace: k.namespace}, ok
}

// serves says whether who has an address is answered at all: the node, and who
// is in one of the networks or is a container.
func (s *Server) serves(from netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.eyesLocked(from); known {
		return true
	}
	return s.withinLocked(from)
}

func (s *Server) withinLocked(a netip.Addr) bool {
	for _, p := range s.nodes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// judge logs when answers stop because what is known is old, and when they come
// again.
func (s *Server) judge(ctx context.Context) {
	s.mu.Lock()
	fresh, was := s.freshLocked(), !s.stale
	s.stale = !fresh
	bus, tasks, known := s.busAway, s.taskAway, s.known
	s.mu.Unlock()
	switch {
	case fresh == was:
	case fresh:
		s.log.InfoContext(ctx, "names of containers are answered")
	default:
		s.log.WarnContext(ctx, "names of containers are not answered: what is known of them is too old", "known", known, "bus_away", !bus.IsZero(), "taskd_away", !tasks.IsZero())
	}
}
