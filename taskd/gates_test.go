package taskd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/gantryd/gantry/eventbus"
	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/gate/gatenats"
	"github.com/gantryd/gantry/services/gate/gatetest"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/namespace/namespacetest"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/task/tasktest"
)

// gated is a place with gates, and a namespace store that can be away.
type gated struct {
	place
	wall *gatetest.Memory
	away *awayNamespaces
}

type awayNamespaces struct {
	namespace.Store
	away atomic.Bool
	gets atomic.Int32
}

func (a *awayNamespaces) Get(ctx context.Context, name string) (namespace.Info, error) {
	a.gets.Add(1)
	if a.away.Load() {
		return namespace.Info{}, fmt.Errorf("imaged does not answer: %w", errdefs.ErrUnavailable)
	}
	return a.Store.Get(ctx, name)
}

func newGated(t *testing.T) gated {
	g := gated{newPlace(t), gatetest.NewMemory(), &awayNamespaces{Store: namespacetest.NewMemory()}}
	g.place.gates, g.place.namespaces = g.wall, g.away
	return g
}

// labelled makes a container and its task.
func (o *opened) labelled(t *testing.T, id string, labels map[string]string) {
	t.Helper()
	spec := tasktest.Spec("sleep")
	_, err := o.Containers().In(one).Create(t.Context(), container.Container{
		ID: id, Runtime: container.Runtime{Name: tasktest.MemoryRuntime}, Spec: &spec, Labels: labels,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.tasksOne().Create(t.Context(), task.CreateRequest{ContainerID: id}); err != nil {
		t.Fatal(err)
	}
}

// wantStart starts a task and wants an error of a kind that says things; nil is
// none, and a task that runs.
func (o *opened) wantStart(t *testing.T, id string, kind error, says ...string) {
	t.Helper()
	_, err := o.tasksOne().Start(t.Context(), id, "")
	want := task.Created
	if kind == nil {
		want = task.Running
	}
	if kind == nil && err != nil || kind != nil && !errors.Is(err, kind) {
		t.Errorf("Start(%s): %v, want %v", id, err, kind)
	}
	for _, s := range says {
		if err != nil && !strings.Contains(err.Error(), s) {
			t.Errorf("Start(%s): %v; want it to say %q", id, err, s)
		}
	}
	if got := o.status(t, id); got != want {
		t.Errorf("%s is %v, want %v", id, got, want)
	}
}

func network(more string) map[string]string {
	return map[string]string{gate.Label: "network" + more, "app": "web"}
}

func TestAGateHoldsAStart(t *testing.T) {
	g := newGated(t)
	o := g.open(t, &cut{})
	o.labelled(t, "c1", network(""))
	var asked []gate.Request
	answer := errors.New("no address\nis left")
	g.wall.Serve("network", gate.Func(func(_ context.Context, r gate.Request) error {
		asked = append(asked, r)
		return answer
	}))
	o.wantStart(t, "c1", errdefs.ErrFailedPrecondition, "network", "c1", "no address is left")
	answer = nil
	o.wantStart(t, "c1", nil)
	p, err := o.tasksOne().Get(t.Context(), "c1", "")
	if err != nil {
		t.Fatal(err)
	}
	want := gate.Request{Namespace: "one", Container: "c1", Pid: int(p.Pid), Labels: network("")}
	if d := cmp.Diff([]gate.Request{want, want}, asked); d != "" {
		t.Errorf("the gate was asked (-want +got):\n%s", d)
	}
	// What runs, and what is added to it, is nobody's question.
	if _, err := o.tasksOne().Start(t.Context(), "c1", ""); err == nil || len(asked) != 2 {
		t.Errorf("a start of what runs: %v, asked %d times", err, len(asked))
	}
	spec := execSpec("sleep")
	if err := o.tasksOne().Exec(t.Context(), task.ExecRequest{ContainerID: "c1", ExecID: "e1", Spec: spec}); err != nil {
		t.Fatal(err)
	}
	if _, err := o.tasksOne().Start(t.Context(), "c1", "e1"); err != nil || len(asked) != 2 {
		t.Errorf("start of an exec: %v, asked %d times", err, len(asked))
	}
}

func TestGatesThatDoNotAnswer(t *testing.T) {
	g := newGated(t)
	g.cfg.GateSeconds, g.cfg.GateAbsentSeconds = 1, 0
	o := g.open(t, &cut{})
	o.labelled(t, "c1", network(",other"))
	g.wall.Serve("network", gate.Func(func(context.Context, gate.Request) error { return nil }))
	o.wantStart(t, "c1", errdefs.ErrAborted, "nobody answers gate other", "c1")
	g.wall.Serve("other", gate.Func(func(ctx context.Context, _ gate.Request) error { <-ctx.Done(); return nil }))
	o.wantStart(t, "c1", errdefs.ErrAborted, "gate other did not answer within 1s", "c1")
	g.wall.Serve("other", gate.Func(func(context.Context, gate.Request) error { return nil }))
	o.wantStart(t, "c1", nil)
}

func TestAllGatesAreAskedAtOnce(t *testing.T) {
	g := newGated(t)
	o := g.open(t, &cut{})
	var both sync.WaitGroup
	both.Add(2)
	for _, name := range []string{"a", "b"} {
		g.wall.Serve(name, gate.Func(func(context.Context, gate.Request) error {
			both.Done()
			both.Wait()
			return nil
		}))
	}
	if _, err := g.away.Create(t.Context(), namespace.Info{Name: "one", Labels: map[string]string{gate.Label: "b"}}); err != nil {
		t.Fatal(err)
	}
	o.labelled(t, "c1", map[string]string{gate.Label: "a,b"})
	o.wantStart(t, "c1", nil)
}

func TestANamespaceNamesGates(t *testing.T) {
	g := newGated(t)
	g.cfg.GateAbsentSeconds = 0
	if _, err := g.away.Create(t.Context(), namespace.Info{Name: "one", Labels: map[string]string{gate.Label: "audit"}}); err != nil {
		t.Fatal(err)
	}
	o := g.open(t, &cut{})
	o.labelled(t, "c1", nil)
	o.wantStart(t, "c1", errdefs.ErrAborted, "audit")
	o = g.restart(t, o) // which forgets what it knew
	o.wantStart(t, "c1", errdefs.ErrAborted, "audit")

	g.away.away.Store(true)
	o = g.restart(t, o)
	o.wantStart(t, "c1", errdefs.ErrUnavailable, "the gates of namespace one are not known")
	g.away.away.Store(false)
	if _, err := g.away.Update(t.Context(), namespace.Info{Name: "one", Labels: map[string]string{gate.Label: "../x"}}); err != nil {
		t.Fatal(err)
	}
	o.wantStart(t, "c1", errdefs.ErrInvalidArgument, "namespace one", gate.Label)
	if _, err := g.away.Update(t.Context(), namespace.Info{Name: "one"}); err != nil {
		t.Fatal(err)
	}
	o.wantStart(t, "c1", nil)
	o.labelled(t, "c2", map[string]string{gate.Label: "a b"})
	o.wantStart(t, "c2", errdefs.ErrInvalidArgument, "container c2", gate.Label)
}

// A start that needs nobody waits for nobody: what it has to know was asked for
// while its task was made.
func TestAStartWithoutGatesAsksNobody(t *testing.T) {
	g := newGated(t)
	o := g.open(t, &cut{})
	o.labelled(t, "c1", nil)
	eventually(t, "the namespace was looked at", func() error {
		if g.away.gets.Load() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	o.wantStart(t, "c1", nil)
	if n := g.away.gets.Load(); n != 1 {
		t.Errorf("the namespace was looked at %d times", n)
	}
}

// What ends the asking leaves a task that is created, or none.
func TestTheEndOfAskingIsNoStart(t *testing.T) {
	g := newGated(t)
	for _, c := range []struct {
		name string
		end  func(t *testing.T, o *opened, cancel func())
		want error
	}{
		{"kill", func(t *testing.T, o *opened, _ func()) {
			if err := o.tasksOne().Kill(t.Context(), "kill", "", sigkill, false); err != nil {
				t.Error(err)
			}
		}, errdefs.ErrFailedPrecondition},
		{"delete", func(t *testing.T, o *opened, _ func()) {
			if _, err := o.tasksOne().Delete(t.Context(), "delete"); err != nil {
				t.Error(err)
			}
		}, nil},
		{"caller", func(_ *testing.T, _ *opened, cancel func()) { cancel() }, context.Canceled},
		{"restart", func(_ *testing.T, o *opened, _ func()) { o.Interrupt() }, errdefs.ErrUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := g.open(t, &cut{})
			asked, left := make(chan struct{}, 1), make(chan struct{}, 1)
			stop := g.wall.Serve("network", gate.Func(func(ctx context.Context, _ gate.Request) error {
				asked <- struct{}{}
				<-ctx.Done()
				left <- struct{}{}
				return nil
			}))
			o.labelled(t, c.name, network(""))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				_, err := o.tasksOne().Start(ctx, c.name, "")
				ended <- err
			}()
			<-asked
			waits := func() []gate.Wait {
				all, err := o.Lobby().Waiting(t.Context())
				if err != nil {
					t.Error(err)
				}
				return all
			}
			if all := waits(); len(all) != 1 || all[0].Gate != "network" || all[0].Container != c.name {
				t.Errorf("while it is asked %v wait", all)
			}
			c.end(t, o, cancel)
			err := <-ended
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("Start: %v, want %v", err, c.want)
			}
			<-left
			if all := waits(); len(all) != 0 {
				t.Errorf("when it is over %v wait", all)
			}
			stop()
			switch c.name {
			case "delete":
				if _, err := o.tasksOne().Get(t.Context(), c.name, ""); !errors.Is(err, errdefs.ErrNotFound) {
					t.Errorf("after Delete: %v", err)
				}
			case "kill":
				if s := o.status(t, c.name); s != task.Stopped {
					t.Errorf("after Kill it is %v", s)
				}
			default:
				o = g.restart(t, o)
				g.wall.Serve("network", gate.Func(func(context.Context, gate.Request) error { return nil }))
				if s := o.status(t, c.name); s != task.Created {
					t.Errorf("after a restart it is %v", s)
				}
				o.wantStart(t, c.name, nil)
			}
			o.close(t)
		})
	}
}

// A daemon that dies while it asks leaves a task that is created.
func TestADaemonThatDiesWhileItAsks(t *testing.T) {
	g := newGated(t)
	c := &cut{}
	o := g.open(t, c)
	o.labelled(t, "c1", network(""))
	g.wall.Serve("network", gate.Func(func(context.Context, gate.Request) error {
		c.restart(1) // the next step is its last
		return nil
	}))
	if _, err := o.tasksOne().Start(t.Context(), "c1", ""); !errors.Is(err, errCut) {
		t.Errorf("Start: %v", err)
	}
	o.stop()
	o.works.Wait()
	o.stop = nil
	_ = o.Close()
	o = g.open(t, &cut{})
	g.wall.Serve("network", gate.Func(func(context.Context, gate.Request) error { return nil }))
	o.wantStart(t, "c1", nil)
}

func TestWithoutAnAskerNothingWithGatesStarts(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.labelled(t, "c1", network(""))
	o.wantStart(t, "c1", errdefs.ErrFailedPrecondition, "network")
}

// TestGatesOverTheBus has a plugin that is replaced, and a bus that restarts,
// while starts wait.
func TestGatesOverTheBus(t *testing.T) {
	p := newPlace(t)
	cfg := eventbus.Default()
	cfg.Root = filepath.Join(t.TempDir(), "bus")
	socket := filepath.Join(t.TempDir(), "nats.sock")
	stop := serveBus(t, cfg, socket)
	var conns []*eventnats.Bus
	for range 2 {
		c, err := eventnats.Dial(socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		conns = append(conns, c)
	}
	p.gates = gatenats.NewAsker(conns[0].Conn())
	o := p.open(t, &cut{})
	var passed sync.Map
	plugin := func(ctx context.Context) error {
		return gatenats.Serve(ctx, conns[1].Conn(), "network", gate.Func(func(_ context.Context, r gate.Request) error {
			if r.Container == "c0" {
				return errors.New("not you")
			}
			passed.Store(r.Container, true)
			return nil
		}))
	}
	ids := []string{"c0", "c1", "c2", "c3"}
	for _, id := range ids {
		o.labelled(t, id, network(""))
	}
	var starts sync.WaitGroup
	errs := make([]error, len(ids))
	for i, id := range ids {
		starts.Go(func() { _, errs[i] = o.tasksOne().Start(t.Context(), id, "") })
	}
	stop() // while they wait for a plugin
	stop = serveBus(t, cfg, socket)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- plugin(ctx) }()
	starts.Wait()
	if err := errs[0]; !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "not you") {
		t.Errorf("c0: %v", err)
	}
	for i, id := range ids[1:] {
		if _, ok := passed.Load(id); errs[i+1] != nil || !ok {
			t.Errorf("%s: %v, passed %t", id, errs[i+1], ok)
		}
	}
	cancel()
	<-served
	stop()
}

func serveBus(t *testing.T, cfg eventbus.Config, socket string) (stop func()) {
	t.Helper()
	b, err := eventbus.Open(cfg, eventbus.Needs{Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var works sync.WaitGroup
	works.Go(func() { _ = b.ServeNATS(ctx, lis) })
	stop = sync.OnceFunc(func() {
		cancel()
		works.Wait()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}
