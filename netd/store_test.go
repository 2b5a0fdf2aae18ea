package netd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/network"
	"github.com/gantryd/gantry/services/task"
)

var (
	one = key{"one", "web"}
	two = key{"two", "web"} // the same name in another namespace
)

func onNetwork(ports string) map[string]string {
	return map[string]string{network.LabelNetwork: "default", network.LabelPorts: ports}
}

func TestAskedAgainNothingIsDoneTwice(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	q := w.start(one, 10, webLabels)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := s.Pass(t.Context(), q); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// Also by the next netd, and after somebody removed the label.
	if err := s.label(t.Context(), s.get(one), ""); err != nil {
		t.Fatal(err)
	}
	if err := w.open().Pass(t.Context(), q); err != nil {
		t.Error(err)
	}
	w.connected(one)
	w.want(1)
}

func TestWhoAsksForNothingGetsNothing(t *testing.T) {
	w := newWorld(t)
	if err := w.open().Pass(t.Context(), w.start(one, 10, map[string]string{"app": "web"})); err != nil {
		t.Error(err)
	}
	w.want(0)
}

func TestDenials(t *testing.T) {
	w := newWorld(t)
	w.listening[22] = true
	s := w.open()
	if err := s.Pass(t.Context(), w.start(two, 20, onNetwork("8080:80"))); err != nil {
		t.Fatal(err)
	}
	host := w.start(key{"one", "host"}, 30, onNetwork(""))
	w.spaces[30] = nsID{}
	shared := w.start(key{"one", "shared"}, 31, onNetwork(""))
	w.spaces[31] = w.spaces[20]
	foreign := w.start(key{"one", "foreign"}, 32, onNetwork(""))
	foreign.Pid = 20
	stopped := w.start(key{"one", "stopped"}, 33, onNetwork(""))
	w.status(key{"one", "stopped"}, task.Stopped)
	gone := w.start(key{"one", "gone"}, 34, onNetwork(""))
	w.deleteTask(key{"one", "gone"})

	for _, c := range []struct {
		what string
		q    gate.Request
		want error
		says string
	}{
		{"the node's network", host, errdefs.ErrFailedPrecondition, "network of the node"},
		{"another's namespace", shared, errdefs.ErrFailedPrecondition, "network namespace of container two/web"},
		{"another's process", foreign, errdefs.ErrFailedPrecondition, "process 20 is not that of container one/foreign"},
		{"a stopped task", stopped, errdefs.ErrFailedPrecondition, "stopped"},
		{"no task", gone, errdefs.ErrNotFound, ""},
		{"no such network", w.start(one, 10, map[string]string{network.LabelNetwork: "other"}), errdefs.ErrNotFound, "network other"},
		{"a port that is published", w.start(one, 10, onNetwork("80:80,8080:8080")), errdefs.ErrAlreadyExists, "container two/web"},
		{"the same port of one address", w.start(one, 10, onNetwork("127.0.0.1:8080:8080")), errdefs.ErrAlreadyExists, "container two/web"},
		{"a port where the node listens", w.start(one, 10, onNetwork("22:80")), errdefs.ErrFailedPrecondition, "22:80"},
		{"a path", w.start(one, 10, map[string]string{network.LabelNetwork: "../networks/default"}), errdefs.ErrInvalidArgument, "identifier"},
		{"no port", w.start(one, 10, onNetwork("80")), errdefs.ErrInvalidArgument, "want"},
		{"ports without a network", w.start(one, 10, map[string]string{network.LabelPorts: "1:1"}), errdefs.ErrInvalidArgument, "without"},
		{"a namespace that is a path", gate.Request{Namespace: "../one", Container: "web", Pid: 10, Labels: onNetwork("")}, errdefs.ErrInvalidArgument, ""},
		{"a container that is a path", gate.Request{Namespace: "one", Container: "a/b", Pid: 10, Labels: onNetwork("")}, errdefs.ErrInvalidArgument, ""},
	} {
		err := s.Pass(t.Context(), c.q)
		wantKind(t, c.what, err, c.want)
		wantText(t, err, c.says)
	}
	w.want(1)
	// The same port of another protocol is another port.
	if err := s.Pass(t.Context(), w.start(one, 10, onNetwork("8080:80/udp"))); err != nil {
		t.Error(err)
	}
	w.want(2)
}

func TestAPluginThatFailsLeavesNothing(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	q := w.start(one, 10, webLabels)
	w.addFails = errors.New("no address is left")
	wantText(t, s.Pass(t.Context(), q), "network default", "no address is left")
	w.want(0)

	// What cannot be undone at once is undone later, and its ports are not
	// given to anybody before.
	w.delFails = errors.New("the packet filter is busy")
	wantText(t, s.Pass(t.Context(), q), "no address is left")
	w.want(1)
	w.addFails = nil
	wantText(t, s.Pass(t.Context(), q), "earlier attachment", "busy")
	wantKind(t, "port of what is left", s.Pass(t.Context(), w.start(two, 20, onNetwork("8080:80"))), errdefs.ErrAlreadyExists)
	w.delFails = nil
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Reconcile(ctx) }()
	eventually(t, "what was left is undone", func() bool { return len(s.ids("default")) == 0 })
	cancel()
	wantKind(t, "Reconcile", <-done, context.Canceled)
	w.want(0)
	if err := s.Pass(t.Context(), q); err != nil {
		t.Error(err)
	}
	w.connected(one)
}

func TestWhatIsLeftOfAContainerIsInNobodysWay(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	if err := s.Pass(t.Context(), w.start(two, 20, onNetwork("8080:80"))); err != nil {
		t.Fatal(err)
	}
	// It is gone, and nobody has told netd yet.
	w.deleteTask(two)
	if err := s.Pass(t.Context(), w.start(one, 10, onNetwork("8080:80"))); err != nil {
		t.Error(err)
	}
	w.connected(one)
	w.want(1)
	// Two who wait for what a third has do not wait for each other for ever.
	w.status(one, task.Stopped)
	var wg sync.WaitGroup
	var passed atomic.Int32
	for i := range 8 {
		q := w.start(key{"one", fmt.Sprintf("c%d", i)}, uint32(100+i), onNetwork("8080:80"))
		wg.Go(func() {
			if err := s.Pass(t.Context(), q); err == nil {
				passed.Add(1)
			} else if !errdefs.IsAlreadyExists(err) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if passed.Load() != 1 {
		t.Errorf("%d containers publish one port", passed.Load())
	}
	w.want(1)
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestEventsEndAttachments(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Reconcile(ctx) }()
	defer func() { cancel(); <-done }()
	hear := func(e event.Event) {
		if err := s.Hear(ctx, e); err != nil {
			t.Error(err)
		}
	}
	exit := func(exec string) event.Event {
		return event.New("one", time.Now(), event.TaskExit{ContainerID: "web", ID: exec})
	}
	gone := func() bool { return len(s.ids("default")) == 0 }

	// The exit of the first process ends it, while the task is still there.
	if err := s.Pass(t.Context(), w.start(one, 10, webLabels)); err != nil {
		t.Fatal(err)
	}
	w.status(one, task.Stopped)
	hear(exit("web"))
	eventually(t, "it is disconnected after its exit", gone)
	w.want(0)

	// Events of an earlier task, told late or twice, do nothing to this one;
	// nor do those of an exec.
	if err := s.Pass(t.Context(), w.start(one, 11, webLabels)); err != nil {
		t.Fatal(err)
	}
	hear(exit("web"))
	hear(exit("exec-1"))
	hear(event.New("one", time.Now(), event.TaskDelete{ContainerID: "web", Pid: 10}))
	hear(event.New("two", time.Now(), event.ContainerDelete{ID: "web"}))
	w.status(one, task.Unknown)
	hear(exit("web"))
	w.status(one, task.Running)

	// One that nobody told of is found by the next look at everything.
	if err := s.Pass(t.Context(), w.start(key{"one", "other"}, 12, onNetwork(""))); err != nil {
		t.Fatal(err)
	}
	w.deleteTask(key{"one", "other"})
	if err := s.Relist(ctx, nil); err != nil {
		t.Error(err)
	}
	eventually(t, "the other is disconnected", func() bool { return s.get(key{"one", "other"}) == nil })
	w.connected(one)

	w.deleteTask(one)
	if err := w.containers.In(namespace.Scope{Name: "one"}).Delete(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	hear(event.New("one", time.Now(), event.ContainerDelete{ID: "web"}))
	eventually(t, "it is disconnected after its deletion", gone)
	w.want(0)
}

func TestABootEndsEveryAttachment(t *testing.T) {
	w := newWorld(t)
	if err := w.open().Pass(t.Context(), w.start(one, 10, webLabels)); err != nil {
		t.Fatal(err)
	}
	// The kernel's part is gone. Addresses are on disk, and a new namespace
	// has the number of the old one.
	w.boot = "two"
	clear(w.pins)
	clear(w.devices)
	clear(w.rules)
	old := w.addresses[w.open().get(one).ID]
	w.deleteTask(one)
	q := w.start(two, 10, onNetwork(""))
	s := w.open()
	if err := s.Pass(t.Context(), q); err != nil {
		t.Fatalf("before anything is looked at: %v", err)
	}
	if err := settleAll(t, s); err != nil {
		t.Error(err)
	}
	w.connected(two)
	w.want(1)
	if _, ok := w.labels(one)[network.LabelAddresses]; ok {
		t.Errorf("the address %s of another boot is still told", old)
	}
}

func TestManyAreConnectedAtOnceAndNotTooMany(t *testing.T) {
	w := newWorld(t)
	w.block = make(chan struct{})
	s := w.open()
	const n = 2*pluginsMax + 1
	var requests []gate.Request
	for i := range n {
		requests = append(requests, w.start(key{"one", fmt.Sprintf("c%d", i)}, uint32(100+i), onNetwork("")))
	}
	var wg sync.WaitGroup
	for _, q := range requests {
		wg.Go(func() {
			if err := s.Pass(t.Context(), q); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "as many plugins run as may", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.running == pluginsMax
	})
	close(w.block)
	wg.Wait()
	if w.runningMax != pluginsMax {
		t.Errorf("%d attachments were worked on at once, want %d", w.runningMax, pluginsMax)
	}
	w.want(n)
}

func TestWhoAsksAndLeavesIsConnectedAllTheSame(t *testing.T) {
	w := newWorld(t)
	w.block = make(chan struct{})
	s := w.open()
	q := w.start(one, 10, webLabels)
	ctx, leave := context.WithCancel(t.Context())
	asked := make(chan error, 1)
	go func() { asked <- s.Pass(ctx, q) }()
	eventually(t, "the plugin runs", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.running == 1 })
	// Who asks meanwhile and has no time gets no answer, and does no harm.
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	wantKind(t, "no time", s.Pass(short, q), context.DeadlineExceeded)
	leave()
	close(w.block)
	if err := <-asked; err != nil {
		t.Error(err)
	}
	w.connected(one)
	w.want(1)
}

func TestNetworksAreFiles(t *testing.T) {
	w := newWorld(t)
	w.network("broken", "{")
	w.network("nameless", `{"cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}`)
	w.network("path", `{"cniVersion":"1.0.0","name":"path","plugins":[{"type":"../../bin/sh"}]}`)
	w.network("odd", `{"cniVersion":"1.0.0","name":"../odd","plugins":[{"type":"bridge"}]}`)
	w.network("empty", `{"cniVersion":"1.0.0","name":"empty","plugins":[]}`)
	w.network("plain", `{"cniVersion":"1.0.0","name":"plain","plugins":[{"type":"ptp","ipam":{"type":"dhcp","ranges":"x"}}]}`)
	w.network("six", `{"cniVersion":"1.0.0","name":"six","plugins":[{"type":"bridge","ipam":{"type":"host-local","subnet":"10.1.0.0/24","gateway":"10.1.0.9","ranges":[[{"subnet":"fd00::/64"}]]}}]}`)
	if err := os.Mkdir(filepath.Join(w.cfg.Networks[0], "directory.conflist"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := w.open()
	for name, want := range map[string]error{
		"default": nil, "plain": nil, "six": nil,
		"broken": errdefs.ErrNotFound, "path": errdefs.ErrNotFound, "empty": errdefs.ErrNotFound, "odd": errdefs.ErrNotFound,
	} {
		n, err := s.network(name)
		if !errors.Is(err, want) || err == nil && n.name != name {
			t.Errorf("%s: got %q, %v, want %v", name, n.name, err, want)
		}
	}
	_, err := s.network("path")
	wantText(t, err, "path.conflist", "want the name of a file")

	node, _ := os.ReadFile(nodeResolver)
	for name, want := range map[string]string{
		"default": "nameserver 10.87.0.1\n",
		"six":     "nameserver fd00::1\nnameserver 10.1.0.9\n",
		"plain":   string(node),
	} {
		b, err := os.ReadFile(network.ResolvConf(w.cfg.State, name))
		if err != nil || string(b) != want {
			t.Errorf("resolver of %s: %q, %v, want %q", name, b, err, want)
		}
	}
	nodes, err := network.ReadNodes(w.cfg.State)
	if got := fmt.Sprint(nodes); err != nil || got != "[10.87.0.1/16 fd00::1/64 10.1.0.9/24]" {
		t.Errorf("the node's addresses are %s, %v", got, err)
	}
}

// TestALostRootIsCollected removes the records under an attachment: its address
// is found in what host-local has written, and nobody else's is touched.
func TestALostRootIsCollected(t *testing.T) {
	w := newWorld(t)
	leases := filepath.Join(t.TempDir(), "leases")
	w.network("default", strings.Replace(defaultList, `"type":"host-local"`, fmt.Sprintf(`"type":"host-local","dataDir":%q`, leases), 1))
	s := w.open()
	if err := s.Pass(t.Context(), w.start(one, 10, webLabels)); err != nil {
		t.Fatal(err)
	}
	lost := s.get(one).ID
	if err := os.MkdirAll(filepath.Join(leases, "default"), 0o755); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{
		"10.87.0.2": lost + "\r\neth0", "10.87.0.3": "gantry-00000000-another\r\neth0", "10.87.0.4": s.prefix + "../../x\r\neth0",
		"last_reserved_ip.0": "10.87.0.4", "lock": "",
	} {
		if err := os.WriteFile(filepath.Join(leases, "default", file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(w.cfg.Root); err != nil {
		t.Fatal(err)
	}
	w.addresses["gantry-00000000-another"] = "10.87.0.3/16"
	s = w.open()
	s.collect(t.Context())
	if len(w.addresses) != 1 || w.addresses["gantry-00000000-another"] == "" || len(w.rules) != 0 || len(w.pins) != 0 || len(w.devices) != 0 {
		t.Errorf("left: addresses %v, rules %v, pins %v, devices %v; want another's address only", w.addresses, w.rules, w.pins, w.devices)
	}
}

func TestARecordThatCannotBeReadStays(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.cfg.Root, "attachments", "gantry-x")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, recordFile), []byte(`{"id":`), 0o600); err != nil {
		t.Fatal(err)
	}
	s := w.open()
	if err := s.Pass(t.Context(), w.start(one, 10, webLabels)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, recordFile)); err != nil {
		t.Error(err)
	}
}

func TestARootIsOfOneNetd(t *testing.T) {
	w := newWorld(t)
	if err := os.MkdirAll(w.cfg.Root, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := Open(w.cfg, Needs{})
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(w.cfg.Root); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the root directory is %v, %v", fi.Mode(), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lockDir(ctx, w.cfg.Root); !errors.Is(err, errLocked) {
		t.Errorf("a second: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(w.cfg, Needs{}); err != nil {
		t.Fatal(err)
	}
	s.Close()
}

func TestConfig(t *testing.T) {
	if err := Default().Check(); err != nil {
		t.Error(err)
	}
	err := Config{Root: "a", State: "/b", Networks: []string{"c"}}.Check()
	wantText(t, err, `root: "a"`, `networks: "c"`, "plugins: want")
}

func FuzzNetwork(f *testing.F) {
	f.Add([]byte(defaultList))
	f.Add([]byte(`{"cniVersion":"1.0.0","cniVersions":["1.1.0"],"name":"n","plugins":[{"type":"a","ipam":{"type":"host-local","ranges":[[{"subnet":"::/0","gateway":"x"}]]}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := parseNetwork(b)
		if err != nil {
			return
		}
		if ident.Check(n.name) != nil || strings.Contains(n.name, "/") {
			t.Errorf("a network is called %q", n.name)
		}
		for _, p := range n.nodes() {
			if !p.IsValid() || strings.ContainsAny(p.String(), " \n") {
				t.Errorf("an address of the node is %q", p)
			}
		}
	})
}
