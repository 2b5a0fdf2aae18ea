package eventbus

import (
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

func TestEveryMistakeInPluginsIsTold(t *testing.T) {
	good := Plugin{Name: "p", User: "u", Subscribe: []string{"gantry.v1.*.tasks.>", "gantry.v1.one.images.create"}, Gates: []string{"network", "My.gate_2"}}
	cfg := Default()
	cfg.Plugins = []Plugin{good, {Name: "q", User: "17"}, {Name: "r-2", User: "gantry_x.y", Subscribe: good.Subscribe}}
	if err := cfg.Check(); err != nil {
		t.Errorf("Check of a good one: %v", err)
	}
	for name, c := range map[string]struct {
		change func(*Plugin)
		says   string
	}{
		"no name":            {func(p *Plugin) { p.Name = "" }, "name:"},
		"a subject as name":  {func(p *Plugin) { p.Name = "a.b" }, "name:"},
		"a wildcard as name": {func(p *Plugin) { p.Name = "*" }, "name:"},
		"a long name":        {func(p *Plugin) { p.Name = strings.Repeat("a", 33) }, "name:"},
		"a name twice":       {func(p *Plugin) { p.Name = "q" }, "name: there are two"},
		"a daemon's name":    {func(p *Plugin) { p.Name = "taskd" }, "suite's own"},
		"operator":           {func(p *Plugin) { p.Name = "operator" }, "suite's own"},
		"no user":            {func(p *Plugin) { p.User = "" }, "user:"},
		"root":               {func(p *Plugin) { p.User = "root" }, "user: root"},
		"uid 0":              {func(p *Plugin) { p.User = "00" }, "user: root"},
		"a user twice":       {func(p *Plugin) { p.User = "17" }, "user: \"17\" is plugin"},
		"a strange user":     {func(p *Plugin) { p.User = "a b" }, "user:"},
		"everything":         {func(p *Plugin) { p.Subscribe = []string{">"} }, "subscribe:"},
		"gates as events":    {func(p *Plugin) { p.Subscribe = []string{"gantry.v1.>"} }, "gantry.v1.*.*.>"},
		"a gate as an event": {func(p *Plugin) { p.Subscribe = []string{"gantry.v1.gate.network"} }, "subscribe:"},
		"the API":            {func(p *Plugin) { p.Subscribe = []string{"$JS.API.STREAM.INFO.EVENTS"} }, "subscribe:"},
		"another prefix":     {func(p *Plugin) { p.Subscribe = []string{"gantry.bus.v1.read.q"} }, "subscribe:"},
		"an empty part":      {func(p *Plugin) { p.Subscribe = []string{"gantry.v1..tasks.exit"} }, "subscribe:"},
		"two subjects":       {func(p *Plugin) { p.Subscribe = []string{"gantry.v1.a.b.c gantry.v1.>"} }, "subscribe:"},
		"a line":             {func(p *Plugin) { p.Subscribe = []string{"gantry.v1.a.b.c\r\nx"} }, "subscribe:"},
		"an overlap":         {func(p *Plugin) { p.Subscribe = append(p.Subscribe, "gantry.v1.one.*.create") }, "overlap"},
		"a subject twice":    {func(p *Plugin) { p.Subscribe = append(p.Subscribe, p.Subscribe[0]) }, "overlap"},
		"many subjects":      {func(p *Plugin) { p.Subscribe = make([]string, 65) }, "more than 64"},
		"a subject as gate":  {func(p *Plugin) { p.Gates = []string{"a..b"} }, "gates:"},
		"a wildcard as gate": {func(p *Plugin) { p.Gates = []string{">"} }, "gates:"},
		"a gate twice":       {func(p *Plugin) { p.Gates = []string{"network", "network"} }, "gates:"},
		"another's gate":     {func(p *Plugin) { p.Gates = []string{"mesh"} }, "gates:"},
	} {
		p := good
		p.Subscribe = slices.Clone(p.Subscribe)
		c.change(&p)
		cfg := Default()
		cfg.Plugins = []Plugin{{Name: "q", User: "17", Gates: []string{"mesh"}}, p}
		if err := cfg.Check(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	cfg.Plugins = make([]Plugin, pluginsMax+1)
	if err := cfg.Check(); err == nil || !strings.Contains(err.Error(), "more than 64") {
		t.Errorf("many plugins: %v", err)
	}
}

// A file that names plugins names all of them: the default's are not mixed in.
func TestPluginsOfAFileTakeTheDefaultsPlace(t *testing.T) {
	cfg := Default()
	if err := toml.Unmarshal([]byte("[[plugins]]\nname = \"a\"\nuser = \"a\"\n[[plugins]]\nname = \"b\"\nuser = \"b\"\n"), &cfg); err != nil {
		t.Fatal(err)
	}
	if len(cfg.Plugins) != 2 || cfg.Plugins[0].Name != "a" || cfg.Plugins[0].Subscribe != nil || cfg.Plugins[1].Name != "b" {
		t.Errorf("plugins are %+v", cfg.Plugins)
	}
}
