package gatewayd

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/rpc/rpctest"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/services/suite/noderpc"
)

// A daemon describes itself, or is away.
type daemon struct {
	plugins []suite.Plugin
	away    bool
}

func (d *daemon) Describe(ctx context.Context) (suite.Description, error) {
	if d.away {
		return suite.Description{}, errdefs.ErrUnavailable
	}
	return suite.Description{Plugins: d.plugins}, nil
}

func config(t *testing.T) Config {
	t.Helper()
	c := Default()
	c.Root = filepath.Join(t.TempDir(), "gatewayd")
	return c
}

func open(t *testing.T, cfg Config, needs Needs) *Gateway {
	t.Helper()
	if needs.Log == nil {
		needs.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	g, err := Open(cfg, needs)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// nodes are a gateway as it is and at the other end of a socket.
func nodes(t *testing.T, g *Gateway) map[string]suite.Node {
	return map[string]suite.Node{
		"local":           g,
		"across the wire": noderpc.NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { noderpc.Register(r, g) })),
	}
}

func TestPluginsOfEveryDaemonInOrder(t *testing.T) {
	content := &daemon{plugins: []suite.Plugin{{Type: "io.containerd.content.v1", ID: "content", Exports: map[string]string{"root": "/x"}}}}
	tasks := &daemon{plugins: []suite.Plugin{
		{Type: "io.containerd.runtime.v2", ID: "task", Platforms: []string{"linux/amd64", "linux/arm64/v8"}, Capabilities: []string{"a"}, Requires: []string{"io.containerd.event.v1"}},
		{Type: "io.containerd.monitor.task.v1", ID: "cgroups", Skip: "no cgroups here"},
	}}
	own := suite.Plugin{Type: "io.containerd.grpc.v1", ID: "version"}
	g := open(t, config(t), Needs{
		Daemons: map[string]suite.Describer{suite.Taskd: tasks, suite.Contentd: content},
		Plugins: []suite.Plugin{own},
	})
	all := append(append([]suite.Plugin{content.plugins[0]}, tasks.plugins...), own)
	for name, n := range nodes(t, g) {
		content.away, tasks.away = false, false
		for _, c := range []struct {
			filters []string
			want    []suite.Plugin
		}{
			{nil, all},
			{[]string{"type==io.containerd.runtime.v2"}, all[1:2]},
			{[]string{"id~=^c"}, []suite.Plugin{all[0], all[2]}},
			{[]string{"id==version", "type==io.containerd.content.v1,id==content"}, []suite.Plugin{all[0], all[3]}},
			{[]string{"id==none"}, nil},
			{[]string{"colour==red"}, nil},
		} {
			got, err := n.Plugins(t.Context(), c.filters...)
			if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
				t.Errorf("%s: Plugins(%q): %v (-want +got):\n%s", name, c.filters, err, diff)
			}
		}
		if _, err := n.Plugins(t.Context(), "id==="); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: bad filter: got %v", name, err)
		}
		content.away, tasks.away = true, true
		if got, err := n.Plugins(t.Context()); err != nil || cmp.Diff(all, got) != "" {
			t.Errorf("%s: while daemons are away: got %+v, %v, want what was last known", name, got, err)
		}
		if got, err := n.Plugin(t.Context(), "io.containerd.runtime.v2", "task"); err != nil || cmp.Diff(all[1], got) != "" {
			t.Errorf("%s: Plugin: got %+v, %v", name, got, err)
		}
		if _, err := n.Plugin(t.Context(), "io.containerd.runtime.v2", "other"); !errdefs.IsNotFound(err) {
			t.Errorf("%s: Plugin that is not there: %v", name, err)
		}
	}
}

func TestDaemonThatWasNeverSeenHasNoPlugins(t *testing.T) {
	g := open(t, config(t), Needs{Daemons: map[string]suite.Describer{suite.Contentd: &daemon{away: true}}})
	if got, err := g.Plugins(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v, want none", got, err)
	}
}

func TestVersionIsSemantic(t *testing.T) {
	form := regexp.MustCompile(`^v2\.4\.2\+gantry\.[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*$`)
	for _, own := range []string{"0.1.0", "0.0.0-devel", "0.0.0-20261121034634-abcdef012345+dirty", "1.0.0-rc.1", "weird version!"} {
		g := open(t, config(t), Needs{Version: own, Revision: "abc"})
		for name, n := range nodes(t, g) {
			v, err := n.Version(t.Context())
			if err != nil || !form.MatchString(v.Version) || v.Revision != "abc" {
				t.Errorf("%s: %q: got %+v, %v", name, own, v, err)
			}
		}
	}
}

func TestUUIDStays(t *testing.T) {
	cfg := config(t)
	g := open(t, cfg, Needs{})
	first, err := g.Server(t.Context())
	if err != nil || !uuidForm.MatchString(first.UUID) || first.Pid != os.Getpid() || first.PidNamespace == 0 {
		t.Errorf("got %+v, %v", first, err)
	}
	for name, n := range nodes(t, open(t, cfg, Needs{})) {
		if again, err := n.Server(t.Context()); err != nil || again != first {
			t.Errorf("%s, after a restart: got %+v, %v, want %+v", name, again, err, first)
		}
	}
	other := open(t, config(t), Needs{})
	if other.uuid == first.UUID {
		t.Error("two nodes have one uuid")
	}
	left, err := os.ReadDir(cfg.Root)
	if err != nil || len(left) != 1 {
		t.Errorf("root holds %v, %v, want the uuid only", left, err)
	}
}

func TestUUIDThatIsNoneIsKeptAndRefused(t *testing.T) {
	for _, text := range []string{"", "x", "d602d050-6897-4a46-a703-89845bef004", "D602D050-6897-4A46-A703-89845BEF0040"} {
		cfg := config(t)
		if err := os.MkdirAll(cfg.Root, 0o755); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(cfg.Root, "uuid")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(cfg, Needs{}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: got %v, want failed precondition", text, err)
		}
		if b, err := os.ReadFile(path); string(b) != text {
			t.Errorf("%q became %q, %v", text, b, err)
		}
		if fi, err := os.Stat(cfg.Root); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("root: %v, %v, want 0700", fi, err)
		}
	}
}

func TestAway(t *testing.T) {
	err := Away(suite.Contentd, "/containerd.services.content.v1.Content/Write")
	if !errdefs.IsAborted(err) || !strings.Contains(err.Error(), "contentd is down") {
		t.Errorf("Content.Write: got %v", err)
	}
	if err := Away(suite.Contentd, "/containerd.services.content.v1.Content/Info"); !errdefs.IsUnavailable(err) {
		t.Errorf("Content.Info: got %v", err)
	}
}

func TestConfig(t *testing.T) {
	if err := Default().Check(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	err := Config{Root: "r", Address: "a", Also: []string{"/b", "/b", "c"}, HoldSeconds: -1}.Check()
	for _, want := range []string{`root: "r"`, `address: "a"`, `also: "/b" is there twice`, `also: "c"`, "hold_seconds"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want also %s", err, want)
		}
	}
	if errors.Unwrap(err) != nil {
		t.Errorf("got %v, want joined errors", err)
	}
}
