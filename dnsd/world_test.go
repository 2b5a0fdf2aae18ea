package dnsd

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/container/containertest"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/namespace/namespacetest"
	"github.com/gantryd/gantry/services/network"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

// A world is what dnsd is told of: containers and tasks. Its clock is set by
// hand.
type world struct {
	t          *testing.T
	containers *containertest.Memory
	log        strings.Builder

	mu    sync.Mutex
	tasks map[key]task.Process
	away  error  // what taskd says instead of an answer
	asked func() // called by each question about one container, before the answer
	clock time.Time
}

const node = "10.87.0.1"

func newWorld(t *testing.T) *world {
	return &world{t: t, containers: containertest.NewMemory(), tasks: make(map[key]task.Process), clock: time.Unix(1e9, 0)}
}

// server returns one that knows nothing.
func (w *world) server() *Server {
	cfg := Default()
	cfg.Forward = false
	s := New(cfg, Needs{
		Namespaces: namespacetest.NewMemory(w.containers), Containers: awayContainers{w.containers, w}, Tasks: worldTasks{w: w},
		Log: slog.New(slog.NewTextHandler(&w.log, nil)),
	})
	s.now = func() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.clock }
	s.nodes = []netip.Prefix{netip.MustParsePrefix(node + "/16"), netip.MustParsePrefix("fd00::1/64")}
	return s
}

// listed returns one that knows what there is.
func (w *world) listed() *Server {
	w.t.Helper()
	s := w.server()
	if err := s.Relist(w.t.Context(), nil); err != nil {
		w.t.Fatal(err)
	}
	return s
}

func parseKey(name string) key {
	ns, id, _ := strings.Cut(name, "/")
	return key{ns, id}
}

// run makes a container that runs.
func (w *world) run(name, addresses string, more ...string) {
	w.t.Helper()
	k := parseKey(name)
	c := container.Container{
		ID: k.container, Labels: map[string]string{network.LabelAddresses: addresses, network.LabelNames: strings.Join(more, ",")},
		Runtime: container.Runtime{Name: "r"}, Spec: &typed.Value{URL: "u", Data: []byte("{}")},
	}
	if _, err := w.containers.In(namespace.Scope{Name: k.namespace}).Create(context.Background(), c); err != nil {
		w.t.Fatal(err)
	}
	w.task(name, task.Running)
}

func (w *world) task(name string, status task.Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tasks[parseKey(name)] = task.Process{ContainerID: parseKey(name).container, Pid: w.pid(name), Status: status}
}

func (w *world) pid(name string) uint32 { return uint32(len(name)) + 100 }

func (w *world) taskdIs(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away = err
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clock = w.clock.Add(d)
}

// hear tells an event, and settle has taskd asked.
func (w *world) hear(s *Server, name string, p event.Payload) {
	w.t.Helper()
	if err := s.Hear(w.t.Context(), event.New(parseKey(name).namespace, time.Now(), p)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) settle(s *Server) {
	w.t.Helper()
	if err := s.lookAll(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) exit(name string) event.Payload {
	id := parseKey(name).container
	return event.TaskExit{ContainerID: id, ID: id, Pid: w.pid(name)}
}

// started is containerd's TaskStart, which only shims tell.
type started struct {
	ContainerID string `json:"container_id"`
	Pid         uint32 `json:"pid"`
}

func (started) EventType() string      { return "containerd.events.TaskStart" }
func (started) EventTopic() string     { return "/tasks/start" }
func (s started) EventSubject() string { return s.ContainerID }

// answerOf is what one who has an address is answered: the code, and the records.
func answerOf(t *testing.T, s *Server, from, name string, qtype uint16) string {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), qtype)
	m, what := answerTo(t, s, from, m)
	switch what {
	case elsewhere:
		return "elsewhere"
	case unknown:
		return "unknown"
	}
	return show(m)
}

func answerTo(t *testing.T, s *Server, from string, m *dns.Msg) (*dns.Msg, outcome) {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	q, refusal := parse(b, netip.MustParseAddr(from), true)
	if q.msg == nil {
		t.Fatalf("%v: refused: %x", m.Question, refusal)
	}
	reply, what := s.local(q)
	if what != answered {
		return nil, what
	}
	b = q.pack(reply, true)
	if len(b) > q.size {
		t.Errorf("%v: an answer of %d bytes, of which %d are wanted", m.Question, len(b), q.size)
	}
	got := new(dns.Msg)
	if err := got.Unpack(b); err != nil {
		t.Fatal(err)
	}
	return got, what
}

func show(m *dns.Msg) string {
	var all []string
	for _, r := range m.Answer {
		all = append(all, strings.TrimPrefix(r.String(), r.Header().String()))
	}
	slices.Sort(all)
	text := dns.RcodeToString[m.Rcode]
	if len(all) > 0 {
		text += " " + strings.Join(all, " ")
	}
	if m.Rcode == dns.RcodeNameError && (len(m.Ns) != 1 || m.Ns[0].Header().Ttl != 5) {
		text += fmt.Sprint(" without the time for which it holds: ", m.Ns)
	}
	return text
}

func want(t *testing.T, s *Server, from, name, answer string) {
	t.Helper()
	if got := answerOf(t, s, from, name, dns.TypeA); got != answer {
		t.Errorf("%s asks for %s: %s, want %s", from, name, got, answer)
	}
}

// taskd, as it is reached.

type awayContainers struct {
	container.Stores
	w *world
}

func (a awayContainers) In(scope namespace.Scope) container.Store {
	return awayStore{a.Stores.In(scope), a.w}
}

type awayStore struct {
	container.Store
	w *world
}

func (a awayStore) List(ctx context.Context, filters ...string) ([]container.Container, error) {
	all, err := a.Store.List(ctx, filters...)
	return all, a.w.trouble(err)
}

func (a awayStore) Get(ctx context.Context, id string) (container.Container, error) {
	c, err := a.Store.Get(ctx, id)
	return c, a.w.trouble(err)
}

func (w *world) trouble(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.away != nil {
		return w.away
	}
	return err
}

type worldTasks struct {
	task.Service // for the methods that nobody calls
	w            *world
	namespace    string
}

func (s worldTasks) In(scope namespace.Scope) task.Service {
	return worldTasks{w: s.w, namespace: scope.Name}
}

func (s worldTasks) Get(_ context.Context, id, _ string) (task.Process, error) {
	s.w.mu.Lock()
	p, ok := s.w.tasks[key{s.namespace, id}]
	asked := s.w.asked
	s.w.mu.Unlock()
	if asked != nil {
		asked()
	}
	if !ok {
		return p, fmt.Errorf("task %s: %w", id, errdefs.ErrNotFound)
	}
	return p, s.w.trouble(nil)
}

func (s worldTasks) List(context.Context) ([]task.Process, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	var all []task.Process
	for k, p := range s.w.tasks {
		if k.namespace == s.namespace {
			all = append(all, p)
		}
	}
	return all, s.w.away
}
