package dnsd

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/network"
	"github.com/gantryd/gantry/services/task"
)

const zone = ".gantry.internal"

func TestNames(t *testing.T) {
	w := newWorld(t)
	w.run("default/web", "10.87.0.2/16,fd00::2/64", "www", "site")
	w.run("default/asker", "10.87.0.3/16", "www")
	w.run("default/Upper_Case", "10.87.0.4/16")
	w.run("other/web", "10.87.0.5/16")
	w.run("other/db", "10.87.0.6/16")
	w.run("k8s.io/pod", "10.87.0.7/16")
	w.run("default/no-network", "")
	w.run("default/stopped", "10.87.0.8/16")
	w.task("default/stopped", task.Stopped)
	w.run("default/created", "10.87.0.9/16")
	w.task("default/created", task.Created)
	w.run("default/silent", "10.87.0.10/16")
	w.task("default/silent", task.Unknown)
	w.run("default/thief", "10.87.0.11/16", "web") // an id comes first
	s := w.listed()
	const asker, other, missing, empty = "10.87.0.3", "10.87.0.6", "NXDOMAIN", "NOERROR"
	for _, c := range []struct {
		from, name string
		qtype      uint16
		want       string
	}{
		{asker, "web", dns.TypeA, "NOERROR 10.87.0.2"},
		{asker, "WeB", dns.TypeA, "NOERROR 10.87.0.2"},
		{asker, "web", dns.TypeAAAA, "NOERROR fd00::2"},
		{asker, "web", dns.TypeMX, empty},
		{asker, "asker", dns.TypeAAAA, empty},
		{asker, "www", dns.TypeA, "NOERROR 10.87.0.2 10.87.0.3"},
		{asker, "site", dns.TypeA, "NOERROR 10.87.0.2"},
		{asker, "upper_case", dns.TypeA, "NOERROR 10.87.0.4"},
		{asker, "silent", dns.TypeA, "NOERROR 10.87.0.10"},
		{asker, "web.default" + zone, dns.TypeA, "NOERROR 10.87.0.2"},
		{asker, "site.default" + zone, dns.TypeAAAA, "NOERROR fd00::2"},
		{asker, "no-network", dns.TypeA, missing},
		{asker, "stopped", dns.TypeA, missing},
		{asker, "created", dns.TypeA, missing},
		{asker, "com", dns.TypeNS, missing},
		{asker, "nobody.default" + zone, dns.TypeA, missing},
		{asker, "a.web.default" + zone, dns.TypeA, missing},
		{asker, "default" + zone, dns.TypeA, empty},
		{asker, "gantry.internal", dns.TypeA, empty},
		{asker, "internal", dns.TypeA, missing},

		// Of another namespace.
		{asker, "db", dns.TypeA, missing},
		{asker, "web.other" + zone, dns.TypeA, missing},
		{asker, "other" + zone, dns.TypeA, missing},
		{asker, "6.0.87.10.in-addr.arpa", dns.TypePTR, missing},
		{other, "web", dns.TypeA, "NOERROR 10.87.0.5"},
		{other, "6.0.87.10.in-addr.arpa", dns.TypePTR, "NOERROR db.other.gantry.internal."},
		{"10.87.0.7", "pod", dns.TypeA, "NOERROR 10.87.0.7"},
		{"10.87.0.7", "pod.K8s.io" + zone, dns.TypeA, "NOERROR 10.87.0.7"},
		{"10.87.0.9", "web", dns.TypeA, "NOERROR 10.87.0.2"}, // it has not started, and may ask
		{"fd00::2", "web", dns.TypeA, "NOERROR 10.87.0.2"},
		{"10.87.0.8", "web", dns.TypeA, "unknown"}, // it has ended
		{"10.87.9.9", "web", dns.TypeA, "unknown"},
		{"10.87.9.9", "web.default" + zone, dns.TypeA, "unknown"},

		// The node sees all, by full names.
		{node, "web", dns.TypeA, missing},
		{node, "web.other" + zone, dns.TypeA, "NOERROR 10.87.0.5"},
		{"127.0.0.1", "pod.k8s.io" + zone, dns.TypeA, "NOERROR 10.87.0.7"},
		{"::1", "5.0.87.10.in-addr.arpa", dns.TypePTR, "NOERROR web.other.gantry.internal."},

		// Addresses.
		{asker, "2.0.87.10.in-addr.arpa", dns.TypePTR, "NOERROR web.default.gantry.internal."},
		{asker, "2.0.87.10.in-addr.arpa", dns.TypeA, empty},
		{asker, "8.0.87.10.in-addr.arpa", dns.TypePTR, missing},
		{asker, "1.0.87.10.in-addr.arpa", dns.TypePTR, missing},
		{asker, "9.9.87.10.in-addr.arpa", dns.TypePTR, missing},
		{asker, "x.2.0.87.10.in-addr.arpa", dns.TypePTR, missing},
		{asker, "0.87.10.in-addr.arpa", dns.TypePTR, empty},
		{asker, "1.88.10.in-addr.arpa", dns.TypePTR, "elsewhere"},
		{asker, "2" + strings.Repeat(".0", 29) + ".d.f.ip6.arpa", dns.TypePTR, "NOERROR web.default.gantry.internal."},
		{asker, "8.8.8.8.in-addr.arpa", dns.TypePTR, "elsewhere"},

		// Of others, whatever it looks like.
		{asker, "example.com", dns.TypeA, "elsewhere"},
		{asker, "metadata.internal", dns.TypeA, "elsewhere"},
		{asker, "xgantry.internal", dns.TypeA, "elsewhere"},
		{asker, ".", dns.TypeNS, "elsewhere"},
		{asker, "web", dns.TypeANY, "NOTIMP"},
		{asker, "example.com", dns.TypeANY, "NOTIMP"},
		{asker, "gantry.internal", dns.TypeAXFR, "REFUSED"},
	} {
		if got := answerOf(t, s, c.from, c.name, c.qtype); got != c.want {
			t.Errorf("%s asks for %s %s: %s, want %s", c.from, dns.TypeToString[c.qtype], c.name, got, c.want)
		}
	}
}

func TestWhatHappensIsAnsweredAtOnce(t *testing.T) {
	w := newWorld(t)
	w.run("default/a", "10.87.0.2/16")
	w.run("default/bb", "10.87.0.3/16")
	s := w.listed()
	const asker = "10.87.0.2"

	// An exec's exit is no end of the container, nor is that of a task before.
	w.hear(s, "default/bb", event.TaskExit{ContainerID: "bb", ID: "exec", Pid: 7})
	w.hear(s, "default/bb", event.TaskExit{ContainerID: "bb", ID: "bb", Pid: 8})
	want(t, s, asker, "bb", "NOERROR 10.87.0.3")

	// It ends; taskd is not needed to know.
	w.taskdIs(errdefs.ErrUnavailable)
	w.hear(s, "default/bb", w.exit("default/bb"))
	want(t, s, asker, "bb", "NXDOMAIN")
	w.taskdIs(nil)
	w.task("default/bb", task.Stopped)
	w.settle(s)
	want(t, s, asker, "bb", "NXDOMAIN")

	// It starts again.
	w.task("default/bb", task.Running)
	w.hear(s, "default/bb", started{"bb", w.pid("default/bb")})
	want(t, s, asker, "bb", "NOERROR 10.87.0.3")
	w.settle(s)
	want(t, s, asker, "bb", "NOERROR 10.87.0.3")

	// An exit that is told late takes nothing away for long.
	w.hear(s, "default/bb", w.exit("default/bb"))
	w.settle(s)
	want(t, s, asker, "bb", "NOERROR 10.87.0.3")

	// Its label changes, and goes.
	w.hear(s, "default/bb", event.ContainerUpdate{ID: "bb", Labels: map[string]string{network.LabelAddresses: "10.87.0.9/16", network.LabelNames: "more"}})
	want(t, s, asker, "bb", "NOERROR 10.87.0.9")
	want(t, s, asker, "more", "NOERROR 10.87.0.9")
	w.hear(s, "default/bb", event.ContainerUpdate{ID: "bb"})
	want(t, s, asker, "bb", "NXDOMAIN")
	want(t, s, asker, "more", "NXDOMAIN")
	w.settle(s) // it has its first label all the time
	want(t, s, asker, "bb", "NOERROR 10.87.0.3")

	w.hear(s, "default/bb", event.ContainerDelete{ID: "bb"})
	want(t, s, asker, "bb", "NXDOMAIN")

	// One that was not there: it may ask before it has started.
	w.hear(s, "default/ccc", event.ContainerUpdate{ID: "ccc", Labels: map[string]string{network.LabelAddresses: "10.87.0.12/16"}})
	want(t, s, "10.87.0.12", "a", "NOERROR 10.87.0.2")
	want(t, s, asker, "ccc", "NXDOMAIN")
	w.hear(s, "default/ccc", started{"ccc", 1})
	want(t, s, asker, "ccc", "NOERROR 10.87.0.12")
	w.settle(s) // taskd does not know it
	want(t, s, asker, "ccc", "NXDOMAIN")

	// Events that say nothing, of containers that there are and are not.
	for _, topic := range []string{"/tasks/start", "/tasks/exit", "/tasks/delete", "/containers/update", "/other/thing"} {
		for _, b := range []string{"", "x", `{"pid":"x"}`, `{"pid":-1}`, `[]`} {
			if err := s.Hear(t.Context(), event.Event{Namespace: "default", Topic: topic, Subject: "a", JSON: []byte(b)}); err != nil {
				t.Error(err)
			}
			want(t, s, asker, "a", "NOERROR 10.87.0.2")
		}
	}
	w.settle(s)
	want(t, s, asker, "a", "NOERROR 10.87.0.2")
}

// TestAnEventWhileTaskdAnswersCounts has a container end between taskd's answer
// and its being taken in.
func TestAnEventWhileTaskdAnswersCounts(t *testing.T) {
	w := newWorld(t)
	w.run("default/a", "10.87.0.2/16")
	w.run("default/bb", "10.87.0.3/16")
	s := w.listed()
	w.hear(s, "default/bb", started{"bb", w.pid("default/bb")})
	w.asked = func() { // it is running, says taskd
		w.asked = nil
		w.task("default/bb", task.Stopped)
		w.hear(s, "default/bb", w.exit("default/bb"))
	}
	if err := s.look(t.Context(), key{"default", "bb"}); err != nil {
		t.Fatal(err)
	}
	want(t, s, "10.87.0.2", "bb", "NXDOMAIN")
	w.settle(s)
	want(t, s, "10.87.0.2", "bb", "NXDOMAIN")
}

func TestAGapIsListed(t *testing.T) {
	w := newWorld(t)
	w.run("default/a", "10.87.0.2/16")
	w.run("default/b", "10.87.0.3/16")
	s := w.listed()
	// Untold: one ends, one comes.
	w.task("default/b", task.Stopped)
	w.run("new/c", "10.87.0.4/16")
	w.run("default/d", "10.87.0.5/16")
	want(t, s, "10.87.0.2", "b", "NOERROR 10.87.0.3")
	if err := s.Relist(t.Context(), &event.Gap{}); err != nil {
		t.Fatal(err)
	}
	want(t, s, "10.87.0.2", "b", "NXDOMAIN")
	want(t, s, "10.87.0.2", "d", "NOERROR 10.87.0.5")
	want(t, s, "10.87.0.4", "c", "NOERROR 10.87.0.4")
	// A container that went with its task.
	if err := w.containers.In(namespace.Scope{Name: "new"}).Delete(context.Background(), "c"); err != nil {
		t.Fatal(err)
	}
	if err := s.Relist(t.Context(), &event.Gap{}); err != nil {
		t.Fatal(err)
	}
	want(t, s, node, "c.new"+zone, "NXDOMAIN")
}

func TestWhatIsKnownIsAnsweredForAWhile(t *testing.T) {
	w := newWorld(t)
	w.run("default/a", "10.87.0.2/16")
	s := w.server()
	want(t, s, "10.87.0.2", "a", "SERVFAIL") // nothing is known yet
	want(t, s, "10.87.0.2", "example.com", "elsewhere")
	w.taskdIs(errdefs.ErrUnavailable)
	if err := s.Relist(t.Context(), nil); !errdefs.IsUnavailable(err) {
		t.Errorf("a list without taskd: %v", err)
	}
	want(t, s, "10.87.0.2", "a", "SERVFAIL")
	w.taskdIs(nil)
	if err := s.Relist(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	s.judge(t.Context())
	for _, c := range []struct {
		name       string
		gone, back func()
	}{
		{"bus", func() { s.Away(errdefs.ErrUnavailable) }, func() { s.Reached(event.Cursor{}) }},
		{"taskd", func() {
			w.taskdIs(errdefs.ErrUnavailable)
			s.checkOne()
			if err := s.lookAll(t.Context()); !errdefs.IsUnavailable(err) {
				t.Errorf("a look without taskd: %v", err)
			}
		}, func() { w.taskdIs(nil); w.settle(s) }},
	} {
		c.gone()
		w.pass(29 * time.Second)
		c.gone() // that it is still away is not that it has just gone
		want(t, s, "10.87.0.2", "a", "NOERROR 10.87.0.2")
		w.pass(2 * time.Second)
		want(t, s, "10.87.0.2", "a", "SERVFAIL")
		want(t, s, "10.87.0.2", "nobody", "SERVFAIL")
		want(t, s, "10.87.0.2", "2.0.87.10.in-addr.arpa", "SERVFAIL")
		want(t, s, "10.87.0.2", "example.com", "elsewhere")
		s.judge(t.Context())
		c.back()
		s.judge(t.Context())
		want(t, s, "10.87.0.2", "a", "NOERROR 10.87.0.2")
		if n := strings.Count(w.log.String(), c.name+"_away=true"); n != 1 {
			t.Errorf("it is said %d times that the %s is away:\n%s", n, c.name, w.log.String())
		}
	}
	if n := strings.Count(w.log.String(), "names of containers are answered"); n != 3 {
		t.Errorf("it is said %d times that names are answered:\n%s", n, w.log.String())
	}
}

func TestOddLabels(t *testing.T) {
	w := newWorld(t)
	long := strings.Repeat("n", 64)
	w.run("default/a", "10.87.0.2/16")
	for i, addresses := range []string{
		"10.87.0.3", "10.87.0.3/33", "x", ",", "10.87.0.3/16,", "127.0.0.1/8", "0.0.0.0/0", "224.0.0.1/4", "::/0", "fe80::1%eth0/64",
		"::ffff:10.87.0.3/112", "10.87.0.3/16\n", "255.255.255.255/32", strings.Repeat("10.87.0.3/16,", 200) + "10.87.0.3/16",
	} {
		w.run(fmt.Sprintf("default/odd%d", i), addresses)
	}
	w.run("default/names", "10.87.0.4/16", "good", "not good")
	w.run("default/many", "10.87.0.5/16", strings.Split(strings.Repeat("m,", 16)+"m", ",")...)
	w.run("default/other-names", "10.87.0.6/16", "a.other", "a.default", long, "localhost", "LocalHost", "ok")
	w.run("default/web.other", "10.87.0.7/16")
	w.run("default/"+long, "10.87.0.8/16")
	w.run("default/node", node+"/16")
	w.run("default/localhost", "10.87.0.9/16")
	w.run("default/one", "10.87.0.10/16")
	w.run("other/two", "10.87.0.10/16")
	s := w.listed()
	const asker = "10.87.0.2"
	for i := range 14 {
		want(t, s, asker, fmt.Sprintf("odd%d", i), "NXDOMAIN")
	}
	want(t, s, asker, "names", "NOERROR 10.87.0.4")
	want(t, s, asker, "good", "NXDOMAIN")
	want(t, s, asker, "m", "NXDOMAIN")
	want(t, s, asker, "ok", "NOERROR 10.87.0.6")
	want(t, s, asker, "localhost", "NXDOMAIN")
	want(t, s, node, "a.other.default"+zone, "NXDOMAIN")
	want(t, s, node, "web.other"+zone, "NXDOMAIN")
	want(t, s, asker, `a\.other`, "NXDOMAIN")
	want(t, s, asker, `web\.other`, "NXDOMAIN")
	want(t, s, asker, `a\.default`+zone, "NXDOMAIN")
	// Who says to be the node is not, and of two that say to be one nobody is.
	want(t, s, node, "a", "NXDOMAIN")
	want(t, s, "10.87.0.10", "a", "unknown")
	want(t, s, node, "10.0.87.10.in-addr.arpa", "NXDOMAIN")
	// It is the one that runs.
	w.hear(s, "other/two", w.exit("other/two"))
	want(t, s, "10.87.0.10", "a", "NOERROR 10.87.0.2")
}

// TestManyContainers holds that what ten thousand leave behind is nothing.
func TestManyContainers(t *testing.T) {
	w := newWorld(t)
	for i := range 10_000 {
		w.run(fmt.Sprintf("default/c%d", i), fmt.Sprintf("10.87.%d.%d/16", 1+i/250, 1+i%250), "all", fmt.Sprintf("n%d", i))
	}
	s := w.listed()
	want(t, s, "10.87.1.1", "n9999", "NOERROR 10.87.40.250")
	m := new(dns.Msg)
	m.SetQuestion("all.", dns.TypeA)
	m, _ = answerTo(t, s, "10.87.1.1", m)
	if len(m.Answer) != answersMax {
		t.Errorf("a name of ten thousand containers has %d addresses", len(m.Answer))
	}
	for i := range 10_000 {
		if i%2 == 0 {
			w.hear(s, "default/x", event.ContainerDelete{ID: fmt.Sprintf("c%d", i)})
		} else {
			w.hear(s, "default/x", event.ContainerUpdate{ID: fmt.Sprintf("c%d", i)})
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.view.byName)+len(s.view.byAddress)+len(s.view.spaces) != 0 || len(s.view.records) != 5000 {
		t.Errorf("left are %d names, %d addresses, %d namespaces and %d records", len(s.view.byName), len(s.view.byAddress), len(s.view.spaces), len(s.view.records))
	}
}
