package eventbus

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// nodeModules returns where NATS' client for Node is, in the versions and with
// the sums of testdata/node/package-lock.json. It is had once and kept.
func nodeModules(t *testing.T) string {
	t.Helper()
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: make deps installs it", tool)
		}
	}
	dir, err := filepath.Abs("../.build/node")
	if err != nil {
		t.Fatal(err)
	}
	lock, err := os.ReadFile("testdata/node/package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	if have, err := os.ReadFile(filepath.Join(dir, "package-lock.json")); err == nil && string(have) == string(lock) {
		return filepath.Join(dir, "node_modules")
	}
	made := t.TempDir()
	if err := os.CopyFS(made, os.DirFS("testdata/node")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	c.Dir = made
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("NATS' client for Node cannot be had: %v: %v\n%s", c.Args, err, out)
	}
	// Whoever tests at the same time has the same.
	if err := errors.Join(os.RemoveAll(dir), os.CopyFS(dir, os.DirFS(made))); err != nil {
		t.Logf("it is not kept: %v", err)
	}
	return filepath.Join(made, "node_modules")
}

// A line is what the plugin in testdata/node says.
type line struct {
	Subject, Publish string
	Refused, Ready   bool
	Live, Read, ID   string
	Body             struct{ ID string }
}

// A nodePlugin runs.
type nodePlugin struct {
	lines chan line
	ended chan error
}

func runNode(t *testing.T, modules string, env ...string) nodePlugin {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	c := exec.CommandContext(ctx, "node", "testdata/node/follow.cjs")
	c.Env = append(env, "NODE_PATH="+modules, "PATH="+os.Getenv("PATH"))
	var failed strings.Builder
	c.Stderr = &failed
	says, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	p := nodePlugin{lines: make(chan line, 64), ended: make(chan error, 1)}
	go func() {
		for s := bufio.NewScanner(says); s.Scan(); {
			var l line
			if err := json.Unmarshal(s.Bytes(), &l); err == nil {
				p.lines <- l
			}
		}
		close(p.lines)
		if err := c.Wait(); err != nil {
			p.ended <- fmt.Errorf("%w\n%s", err, failed.String())
		}
		close(p.ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-p.ended
	})
	return p
}

// until returns what it says up to a line for which ok is true.
func (p nodePlugin) until(t *testing.T, what string, ok func(line) bool) (said []line) {
	t.Helper()
	for l := range p.lines {
		if said = append(said, l); ok(l) {
			return said
		}
	}
	t.Fatalf("it did not say %s: %v", what, <-p.ended)
	return nil
}

// Reads are what it was told by the read service.
func reads(said []line) (ids []string) {
	for _, l := range said {
		if l.Read != "" {
			ids = append(ids, l.Body.ID)
		}
	}
	return ids
}

func TestAPluginInNode(t *testing.T) {
	modules := nodeModules(t)
	public, key := newKey(t)
	seed, err := key.Seed()
	if err != nil {
		t.Fatal(err)
	}
	cfg := withKey(public)
	cfg.Plugins[0].Subscribe = []string{"gantry.v1.one.containers.>", "gantry.v1.*.tasks.>"}
	cfg.TCP.Certificate, cfg.TCP.Key, _ = certificate(t)
	address, b := openTCP(t, cfg)
	env := func(events int) []string {
		return []string{
			"SERVER=tls://" + address, "SEED=" + string(seed), "CA=" + cfg.TCP.Certificate,
			"ALLOWED=gantry.v1.one.containers.> gantry.v1.*.tasks.exit",
			"REFUSED=> gantry.v1.> gantry.v1.two.containers.* $JS.API.> $SYS.> gantry.v1.gate.other",
			"CURSOR=" + filepath.Join(cfg.TCP.Certificate+".cursor"), fmt.Sprint("EVENTS=", events),
		}
	}
	publishNumbers(t, b, 1, 2)
	p := runNode(t, modules, env(4)...)
	for _, l := range p.until(t, "that it is ready", func(l line) bool { return l.Ready }) {
		allowed := slices.Contains([]string{"gantry.v1.one.containers.>", "gantry.v1.*.tasks.exit"}, l.Subject)
		if l.Ready || allowed && !l.Refused || !allowed && l.Refused {
			continue
		}
		t.Errorf("subject %q, publish %q: refused %v", l.Subject, l.Publish, l.Refused)
	}
	publishNumbers(t, b, 3, 4)
	said := p.until(t, "event 4", func(l line) bool { return l.Read != "" && l.Body.ID == "c4" })
	if got, want := reads(said), []string{"c1", "c2", "c3", "c4"}; !slices.Equal(got, want) {
		t.Errorf("it read %v, want %v", got, want)
	}
	if err := <-p.ended; err != nil {
		t.Error(err)
	}
	// What happens while it is not there it reads when it is back.
	publishNumbers(t, b, 5, 6)
	p = runNode(t, modules, env(3)...)
	said = p.until(t, "that it is ready", func(l line) bool { return l.Ready })
	publishNumbers(t, b, 7)
	said = append(said, p.until(t, "event 7", func(l line) bool { return l.Read != "" && l.Body.ID == "c7" })...)
	if got, want := reads(said), []string{"c5", "c6", "c7"}; !slices.Equal(got, want) {
		t.Errorf("it read %v, want %v", got, want)
	}
	for l := range p.lines {
		said = append(said, l)
	}
	if !slices.ContainsFunc(said, func(l line) bool { return l.Live == "gantry.v1.one.containers.delete" }) {
		t.Errorf("it was told nothing live: %+v", said)
	}
	if err := <-p.ended; err != nil {
		t.Error(err)
	}
	if got := lastSequence(t, b); got != 7 {
		t.Errorf("the stream has %d events, want 7", got)
	}
}
