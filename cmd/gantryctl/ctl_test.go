package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/client/clienttest"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/suite"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update writes it):\n%s", file, diff)
	}
}

// A desk is gantryctl in front of a node in memory.
type desk struct {
	t      *testing.T
	client *client.Client
	ask    asker
	own    *operator // of contentd, or nil if nobody answers
	in     string
}

func newDesk(t *testing.T) *desk {
	return &desk{t: t, client: clienttest.New(t, nil), ask: func(context.Context, string) (answer, error) {
		return answer{}, errors.New("nobody listens here")
	}}
}

func (d *desk) operate(_ context.Context, socket string) (*operator, error) {
	if d.own == nil {
		return nil, fmt.Errorf("nobody answers on %s: %w", socket, errdefs.ErrUnavailable)
	}
	return d.own, nil
}

// ctl runs a command and returns what it prints and its exit code.
func (d *desk) ctl(args ...string) (out, errs string, code int) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 20*time.Second)
	defer cancel()
	n := &node{
		dial:     func(context.Context, string) (*client.Client, error) { return d.client, nil },
		ask:      d.ask,
		operate:  d.operate,
		getenv:   func(key string) string { return map[string]string{"HERE": "value"}[key] },
		unnotify: func() {},
	}
	var o, e bytes.Buffer
	code = execute(ctx, n, args, strings.NewReader(d.in), &o, &e)
	return o.String(), e.String(), code
}

// want runs a command that must succeed and returns what it prints.
func (d *desk) want(args ...string) string {
	d.t.Helper()
	out, errs, code := d.ctl(args...)
	if code != 0 || errs != "" {
		d.t.Fatalf("gantryctl %s = %d: %s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// fail runs a command that must fail with a code, saying a line.
func (d *desk) fail(code int, says string, args ...string) {
	d.t.Helper()
	out, errs, got := d.ctl(args...)
	if got != code || !strings.Contains(errs, says) || strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "gantryctl: ") {
		d.t.Errorf("gantryctl %s = %d, %q and %q; want %d and a line that says %q", strings.Join(args, " "), got, out, errs, code, says)
	}
}

// importDemo imports the demo image.
func (d *desk) importDemo() {
	d.t.Helper()
	file := filepath.Join(d.t.TempDir(), "demo.tar")
	if err := os.WriteFile(file, clienttest.Demo(d.t), 0o644); err != nil {
		d.t.Fatal(err)
	}
	d.want("image", "import", file)
}

func TestHelpIsTheGoldenOne(t *testing.T) {
	d := newDesk(t)
	for _, args := range []string{
		"", "run", "exec", "ps", "stop", "rm", "image", "image import", "image ls", "image rm",
		"fsck", "fsck content", "fsck snapshots", "backup", "backup content", "backup snapshots", "restore", "restore content", "restore snapshots",
		"events", "bus", "bus status", "gate", "gate ls", "up", "demo", "status", "peers", "version",
	} {
		name := "help-" + strings.ReplaceAll(args, " ", "-") + ".txt"
		if args == "" {
			name = "help.txt"
		}
		golden(t, name, d.want(append(strings.Fields(args), "--help")...))
	}
}

func TestPeersIsTheGoldenOne(t *testing.T) {
	golden(t, "peers.txt", newDesk(t).want("peers"))
}

// ago stands for times, which differ from run to run.
var ago = regexp.MustCompile(`\d+s ago`)

func TestTables(t *testing.T) {
	d := newDesk(t)
	golden(t, "image-ls-empty.txt", d.want("image", "ls"))
	golden(t, "ps-empty.txt", d.want("ps"))
	d.importDemo()
	golden(t, "image-ls.txt", ago.ReplaceAllString(d.want("image", "ls"), "0s ago"))
	d.want("run", "-d", "--name", "web", "demo:latest", "sleep")
	if _, err := d.client.In("default").Create(t.Context(), client.CreateOptions{ID: "idle", Image: "demo:latest"}); err != nil {
		t.Fatal(err)
	}
	d.want("stop", "web")
	golden(t, "ps.txt", ago.ReplaceAllString(d.want("ps"), "0s ago"))
	d.want("rm", "web", "idle")
	golden(t, "ps-empty.txt", d.want("ps"))
}

func TestJSONOfNothingIsAnEmptyArray(t *testing.T) {
	d := newDesk(t)
	for _, args := range [][]string{{"image", "ls"}, {"ps"}} {
		if got := d.want(append(args, "-o", "json")...); got != "[]\n" {
			t.Errorf("%v prints %q", args, got)
		}
	}
}

// TestJSONHasTheFieldsThatHelpNames keeps programs that read it working.
func TestJSONHasTheFieldsThatHelpNames(t *testing.T) {
	d := newDesk(t)
	d.importDemo()
	d.want("run", "-d", "--name", "web", "-l", "app=web", "demo:latest", "sleep")
	d.ask = func(context.Context, string) (answer, error) {
		return answer{Serving: true, Description: suite.Description{Version: "1", Pid: 7, Started: time.Now(), Memory: 1 << 20}}, nil
	}
	for _, args := range [][]string{{"image", "ls"}, {"ps"}, {"status"}, {"version"}, {"peers"}} {
		var rows []map[string]any
		if err := json.Unmarshal([]byte(d.want(append(args, "-o", "json")...)), &rows); err != nil || len(rows) == 0 {
			t.Fatalf("%v: %v, %v", args, rows, err)
		}
		help := d.want(append(args, "--help")...)
		_, fields, _ := strings.Cut(help, "Fields with -o json:")
		for key := range rows[0] {
			if !strings.Contains(fields, key) {
				t.Errorf("%v: field %s is not in its help", args, key)
			}
		}
	}
}

func TestRunExitsAsItsProgram(t *testing.T) {
	d := newDesk(t)
	d.importDemo()
	if out := d.want("run", "--rm", "demo:latest", "echo", "hello", "--not-a-flag"); out != "hello --not-a-flag\n" {
		t.Errorf("it printed %q", out)
	}
	if out, errs, code := d.ctl("run", "--rm", "demo:latest", "exit", "7"); code != 7 || out+errs != "" {
		t.Errorf("exit 7 ends with %d, %q, %q", code, out, errs)
	}
	d.in = "typed"
	if out := d.want("run", "--rm", "-i", "demo:latest", "cat"); out != "typed" {
		t.Errorf("cat printed %q", out)
	}
	if got := d.want("ps", "-o", "json"); got != "[]\n" {
		t.Errorf("containers that run --rm left: %s", got)
	}
	d.want("run", "--name", "kept", "demo:latest")
	if got := d.want("ps"); !strings.Contains(got, "kept") {
		t.Errorf("without --rm the container is gone: %s", got)
	}
}

func TestExec(t *testing.T) {
	d := newDesk(t)
	d.importDemo()
	if out := d.want("run", "-d", "--name", "web", "demo:latest", "sleep"); out != "web\n" {
		t.Errorf("run -d prints %q", out)
	}
	if out := d.want("exec", "web", "echo", "inside"); out != "inside\n" {
		t.Errorf("exec prints %q", out)
	}
	if _, _, code := d.ctl("exec", "web", "exit", "3"); code != 3 {
		t.Errorf("exit 3 ends with %d", code)
	}
	d.fail(125, "nothing", "exec", "web", "nothing")
	d.fail(125, "gantryctl image ls and ps", "exec", "none", "true")
}

func TestRunDetachedKeepsItsOutputInAFile(t *testing.T) {
	d := newDesk(t)
	d.importDemo()
	log := filepath.Join(t.TempDir(), "web.log")
	if err := os.WriteFile(log, []byte("before\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	d.want("run", "-d", "--name", "web", "--log", log, "demo:latest", "echo", "hello")
	d.want("stop", "web")
	if b, err := os.ReadFile(log); err != nil || string(b) != "before\nhello\n" {
		t.Errorf("the log is %q, %v", b, err)
	}
}

func TestMistakesAreOneLineThatSaysWhatToDo(t *testing.T) {
	d := newDesk(t)
	d.importDemo()
	d.want("run", "-d", "--name", "web", "demo:latest", "sleep")
	d.fail(125, "gantryctl image ls", "run", "none")
	d.fail(125, "gantryctl rm removes it", "run", "--name", "web", "demo:latest")
	d.fail(125, "give numbers as uid:gid", "run", "--user", "nginx", "demo:latest")
	d.fail(125, "/proc", "run", "--workdir", "/proc/self/fd/8", "demo:latest")
	d.fail(125, "nothing", "run", "--rm", "demo:latest", "nothing")
	d.fail(1, "rm -f", "rm", "web")
	d.fail(1, "not found", "rm", "none")
	d.fail(1, "not found", "image", "rm", "none")
	d.fail(1, "no such file", "image", "import", "/nowhere/demo.tar")
	d.fail(1, "filter", "image", "ls", "--filter", "name==")
	d.fail(2, "gantryctl run --help", "run")
	d.fail(2, "gantryctl run --help", "run", "--no-such-flag", "demo")
	d.fail(2, "gantryctl run --help", "run", "-d", "--rm", "demo")
	d.fail(2, "--detach", "run", "--log", "/x", "demo:latest")
	d.fail(2, "terminal", "run", "-t", "demo:latest")
	d.fail(2, "SOURCE:TARGET", "run", "--mount", "/x", "demo:latest")
	d.fail(2, "KEY=VALUE", "run", "--label", "x", "demo:latest")
	d.fail(2, "--net", "run", "-p", "8080:80", "demo:latest")
	d.fail(2, "--host-net", "run", "--net", "default", "--host-net", "demo:latest")
	d.fail(2, "want [ADDRESS:]HOST:CONTAINER", "run", "--net", "default", "-p", "8080", "demo:latest")
	d.fail(2, "gantryctl up --net", "run", "--net", "none", "demo:latest")
	d.fail(2, "table or json", "ps", "-o", "yaml")
	d.fail(2, "gantryctl --help", "nonsense")
	d.fail(2, "gantryctl ps --help", "ps", "extra")

	bad := filepath.Join(t.TempDir(), "bad.tar")
	if err := os.WriteFile(bad, []byte("not an archive at all, but long enough"), 0o644); err != nil {
		t.Fatal(err)
	}
	d.fail(1, "archive", "image", "import", bad)
	if got := d.want("ps", "-o", "json"); strings.Count(got, `"id"`) != 1 {
		t.Errorf("mistakes left containers: %s", got)
	}
}

func TestImportFromStandardInputUnderAName(t *testing.T) {
	d := newDesk(t)
	d.in = string(clienttest.Demo(t))
	out := d.want("image", "import", "--name", "mine:1", "-")
	if !strings.Contains(out, "mine:1") || strings.Contains(d.want("image", "ls"), "demo") {
		t.Errorf("it imported %s", out)
	}
}

func TestStatusTellsWhoIsDown(t *testing.T) {
	d := newDesk(t)
	began := time.Now().Add(-3 * time.Minute)
	up := map[string]bool{}
	for _, x := range suite.Daemons {
		up[x.Name] = true
	}
	d.ask = func(_ context.Context, socket string) (answer, error) {
		name := strings.TrimSuffix(filepath.Base(socket), ".sock")
		if !up[name] {
			return answer{}, fmt.Errorf("nobody listens on %s", socket)
		}
		return answer{Serving: name != suite.Imaged || up["healthy"], Description: suite.Description{
			Daemon: name, Version: "0.1.0", Pid: 42, Started: began, Memory: 13_300_000,
		}}, nil
	}
	up["healthy"] = true
	golden(t, "status.txt", d.want("--sockets", "/run/gantry", "status"))
	up[suite.Taskd], up["healthy"] = false, false
	out, errs, code := d.ctl("--sockets", "/run/gantry", "status")
	if code != 1 || errs != "" {
		t.Errorf("status = %d, %q; want 1 and nothing said", code, errs)
	}
	golden(t, "status-down.txt", out)
}

func TestEventsAreFollowed(t *testing.T) {
	d := newDesk(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := &node{
		dial:     func(context.Context, string) (*client.Client, error) { return d.client, nil },
		getenv:   func(string) string { return "" },
		unnotify: func() {},
	}
	at := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	out := &listener{heard: make(chan struct{}), until: "/tasks/exit", end: cancel}
	tell := func(ns string, p event.Payload) error {
		return d.client.Events.Publish(ctx, event.New(ns, at, p))
	}
	told := make(chan error, 1)
	go func() {
		// It does not say when it has subscribed: tell it things until it
		// hears one.
		var err error
		for heard := false; err == nil && !heard; {
			select {
			case <-out.heard:
				heard = true
			case <-time.After(10 * time.Millisecond):
				err = tell("default", event.ImageCreate{Name: fmt.Sprint("ready at ", time.Now())})
			}
		}
		told <- errors.Join(err,
			tell("other", event.ContainerCreate{ID: "c1", Image: "demo"}),
			tell("default", event.ContainerCreate{ID: "c1", Image: "demo"}),
			tell("default", event.TaskExit{ContainerID: "c1", ID: "c1", Pid: 7, ExitedAt: at}))
	}()
	code := execute(ctx, n, []string{"events", "-n", "default", "-o", "json"}, strings.NewReader(""), out, out)
	if err := <-told; err != nil {
		t.Fatal(err)
	}
	if code != 0 {
		t.Errorf("events = %d", code)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var got []string
	for _, l := range lines {
		var r eventRow
		if err := json.Unmarshal([]byte(l), &r); err != nil {
			t.Fatalf("%q: %v", l, err)
		}
		if r.Topic != "/images/create" {
			got = append(got, r.Namespace+" "+r.Topic)
		}
	}
	if diff := cmp.Diff([]string{"default /containers/create", "default /tasks/exit"}, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestEventsSayTheirPlainFields(t *testing.T) {
	for payload, want := range map[string]string{
		`{"id":"c1","image":"demo","runtime":{"name":"runc"},"pid":7}`:         "id=c1 image=demo pid=7",
		`{"rootfs":[{"type":"overlay","options":["ro",{"x":1}]}],"pid":7}`:     "pid=7",
		`{"labels":{},"name":"a","exited_at":"2026-11-21T10:00:00Z","b":true}`: "name=a exited_at=2026-11-21T10:00:00Z b=true",
		`{}`: "",
	} {
		if got := (eventRow{Payload: json.RawMessage(payload)}).said(); got != want {
			t.Errorf("%s says %q; want %q", payload, got, want)
		}
	}
	if got := (eventRow{Type: "a.B", Raw: []byte("xyz")}).said(); got != "a.B, 3 bytes" {
		t.Errorf("an event of a type that is not known says %q", got)
	}
}

// A listener keeps what is written, and says when it begins and when it has
// what it waits for.
type listener struct {
	heard chan struct{} // closed at the first write
	until string
	end   func()

	once sync.Once
	mu   sync.Mutex
	b    bytes.Buffer // guarded by mu
}

func (l *listener) Write(p []byte) (int, error) {
	l.once.Do(func() { close(l.heard) })
	l.mu.Lock()
	defer l.mu.Unlock()
	if bytes.Contains(p, []byte(l.until)) {
		l.end()
	}
	return l.b.Write(p)
}

func (l *listener) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestAnAwaySuiteIsExplained(t *testing.T) {
	dir := t.TempDir()
	n := &node{address: filepath.Join(dir, "none.sock")}
	began := time.Now()
	_, err := dialDoor(t.Context(), n.address)
	if took := time.Since(began); !errors.Is(err, errdefs.ErrUnavailable) || took > 2*knockTime {
		t.Fatalf("dialDoor = %v after %v", err, took)
	}
	got := n.explain(err)
	if !strings.Contains(got, "gantryctl --address "+n.address+" up") || strings.Contains(got, "\n") {
		t.Errorf("explain = %q", got)
	}
}
