package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantryd/gantry/services/suite"
)

// A stage is a supervisor whose daemons are shell scripts.
type stage struct {
	t     *testing.T
	s     *supervisor
	dir   string
	logs  *listener
	ready chan struct{} // the suite serves when it is closed
	done  chan error
	stop  context.CancelFunc
}

// faithful writes its pid and goes on until it is told to stop.
const faithful = `trap 'echo stopping; echo NAME >>DIR/stopped; exit 0' TERM
echo $$ >>DIR/NAME.pids
echo started
while :; do sleep 0.02; done`

func newStage(t *testing.T, scripts map[string]string) *stage {
	t.Helper()
	dir := t.TempDir()
	st := &stage{
		t: t, dir: dir, ready: make(chan struct{}), done: make(chan error, 1),
		logs: &listener{heard: make(chan struct{}), until: "\x00", end: func() {}},
	}
	for _, d := range suite.Daemons {
		script := scripts[d.Name]
		if script == "" {
			script = faithful
		}
		script = "#!/bin/sh\n" + strings.NewReplacer("DIR", dir, "NAME", d.Name).Replace(script) + "\n"
		if err := os.WriteFile(filepath.Join(dir, d.Name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	st.s = &supervisor{bin: dir, config: dir, logs: &lines{w: st.logs}, patience: stopTime}
	return st
}

func (st *stage) start() {
	ctx, cancel := context.WithCancel(st.t.Context())
	st.stop = cancel
	go func() {
		st.done <- st.s.run(ctx, func(ctx context.Context) error {
			select {
			case <-st.ready:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	st.t.Cleanup(func() {
		cancel()
		for _, d := range suite.Daemons {
			for _, pid := range st.pids(d.Name) {
				if syscall.Kill(pid, 0) == nil {
					st.t.Errorf("%s is left as process %d", d.Name, pid)
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
	})
}

// end waits for the supervisor's end.
func (st *stage) end() error {
	st.t.Helper()
	select {
	case err := <-st.done:
		return err
	case <-time.After(20 * time.Second):
		st.t.Fatalf("the supervisor goes on:\n%s", st.logs)
		return nil
	}
}

func (st *stage) pids(name string) []int {
	b, _ := os.ReadFile(filepath.Join(st.dir, name+".pids"))
	var pids []int
	for f := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (st *stage) eventually(what string, holds func() bool) {
	st.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			st.t.Fatalf("never: %s\n%s", what, st.logs)
		}
	}
}

func (st *stage) started(n int) func() bool {
	return func() bool {
		for _, d := range suite.Daemons {
			if len(st.pids(d.Name)) < n {
				return false
			}
		}
		return true
	}
}

func TestSupervisorStopsDaemonsInOrder(t *testing.T) {
	st := newStage(t, nil)
	st.start()
	close(st.ready)
	st.eventually("all are started", st.started(1))
	st.stop()
	if err := st.end(); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(filepath.Join(st.dir, "stopped"))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(string(b)); fmt.Sprint(got) != fmt.Sprint(stopOrder) {
		t.Errorf("they stopped in the order %v; want %v", got, stopOrder)
	}
	for _, d := range suite.Daemons {
		if want := fmt.Sprintf("%-9s | stopping\n", d.Name); !strings.Contains(st.logs.String(), want) {
			t.Errorf("the logs lack %q", want)
		}
	}
}

func TestSupervisorStartsAgainWhatDies(t *testing.T) {
	st := newStage(t, nil)
	st.start()
	st.eventually("all are started", st.started(1))
	close(st.ready)
	for n := 1; n <= 3; n++ {
		for _, d := range suite.Daemons {
			pids := st.pids(d.Name)
			if err := syscall.Kill(pids[len(pids)-1], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		died := time.Now()
		st.eventually("all are started again", st.started(n+1))
		if took := time.Since(died); n == 1 && took > time.Second {
			t.Errorf("the first start again took %v", took)
		}
	}
	st.stop()
	if err := st.end(); err != nil {
		t.Error(err)
	}
}

func TestSupervisorGivesUpOnWhatNeverServed(t *testing.T) {
	st := newStage(t, map[string]string{suite.Imaged: "echo 'imaged: /x.toml:3: unknown key \"a\"' >&2; exit 1"})
	st.start()
	err := st.end()
	for _, want := range []string{"imaged does not stay up", `unknown key "a"`, "exit status 1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("it ended with %v; want also %s", err, want)
		}
	}
}

func TestSupervisorKillsWhatDoesNotStop(t *testing.T) {
	st := newStage(t, map[string]string{suite.Contentd: "trap '' TERM; echo $$ >>DIR/NAME.pids; while :; do sleep 0.1; done"})
	st.s.patience = 200 * time.Millisecond
	st.start()
	close(st.ready)
	st.eventually("all are started", st.started(1))
	st.stop()
	if err := st.end(); err != nil {
		t.Error(err)
	}
}

// TestSupervisorDoesNotWaitForHeirs holds that a process which outlives its
// daemon, and has its output open, holds nobody up.
func TestSupervisorDoesNotWaitForHeirs(t *testing.T) {
	st := newStage(t, map[string]string{suite.Taskd: "(echo $$ >/dev/null; exec sleep 300) & echo $! >DIR/heir; " + faithful})
	st.start()
	close(st.ready)
	st.eventually("all are started", st.started(1))
	b, err := os.ReadFile(filepath.Join(st.dir, "heir"))
	if err != nil {
		t.Fatal(err)
	}
	heir, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(heir, syscall.SIGKILL) }()
	st.stop()
	if err := st.end(); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(heir, 0); err != nil {
		t.Errorf("the heir is gone: %v", err)
	}
}

func TestLongLinesAreCutAndNotLost(t *testing.T) {
	l := &listener{heard: make(chan struct{}), until: "\x00", end: func() {}}
	logs := &lines{w: l}
	long := strings.Repeat("x", 3*lineMax)
	if last := logs.copy("taskd", strings.NewReader("one\n"+long+"\nlast")); last != "last" {
		t.Errorf("the last line is %q", last)
	}
	if got := strings.Count(l.String(), "x"); got != len(long) {
		t.Errorf("%d of %d bytes of the long line are there", got, len(long))
	}
}

func TestUpRefuses(t *testing.T) {
	dir := t.TempDir()
	o := upOptions{root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state"), address: filepath.Join(dir, "a.sock"), bin: dir}
	long := o
	long.state = "/" + strings.Repeat("x", 100)
	nobody := func(context.Context, string) (answer, error) { return answer{}, errors.New("nobody") }
	if os.Getuid() == 0 {
		for want, o := range map[string]upOptions{"at most 107": long, "make build": o} {
			if err := o.up(t.Context(), t.Output(), t.Output(), nobody); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("up = %v; want %s", err, want)
			}
		}
	} else if err := o.up(t.Context(), t.Output(), t.Output(), nobody); err == nil || !strings.Contains(err.Error(), "root") {
		t.Errorf("up = %v; want an error that says root", err)
	}

	unlock, err := o.prepare()
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if _, err := o.prepare(); err == nil || !strings.Contains(err.Error(), "another gantryctl up") {
		t.Errorf("a second one on the same root: %v", err)
	}
	for _, dir := range []string{o.root, o.configDir()} {
		if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v; want mode 0700", dir, fi.Mode(), err)
		}
	}
}

func TestUpAddsSettings(t *testing.T) {
	dir := t.TempDir()
	o := upOptions{root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state"), address: filepath.Join(dir, "a.sock"), bin: dir, config: dir}
	more := "log_level = 'debug'\nroot = '/elsewhere'\n"
	if err := os.WriteFile(filepath.Join(dir, "taskd.toml"), []byte(more), 0o600); err != nil {
		t.Fatal(err)
	}
	unlock, err := o.prepare()
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	b, err := os.ReadFile(filepath.Join(o.configDir(), "taskd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"log_level = 'debug'", "root = '" + o.root + "/taskd'", "address = '" + o.address + "'"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("taskd's config lacks %s:\n%s", want, b)
		}
	}
}

// TestUpMakesANetworkIfThereIsNone holds that what an operator has put there, or
// changed, stays.
func TestUpMakesANetworkIfThereIsNone(t *testing.T) {
	dir := t.TempDir()
	o := upOptions{root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state"), address: filepath.Join(dir, "a.sock"), bin: dir, net: true}
	file := filepath.Join(o.root, "networks", "default.conflist")
	for _, want := range []string{string(defaultNetwork), "changed"} {
		unlock, err := o.prepare()
		if err != nil {
			t.Fatal(err)
		}
		unlock()
		if there, _ := filepath.Glob("/etc/gantry/networks/*.conflist"); len(there) > 0 {
			t.Skip("this machine has networks of its own: ", there)
		}
		if b, err := os.ReadFile(file); err != nil || string(b) != want {
			t.Errorf("the network is %q, %v, want %q", b, err, want)
		}
		if err := os.WriteFile(file, []byte("changed"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(filepath.Join(o.configDir(), "netd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{o.root + "/networks", "state = '" + o.state + "/netd'", "root = '" + o.root + "/netd'"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("netd's config lacks %s:\n%s", want, b)
		}
	}
	b, err = os.ReadFile(filepath.Join(o.configDir(), "dnsd.toml"))
	if err != nil || !strings.Contains(string(b), "networks = '"+o.state+"/netd'") || strings.Contains(string(b), "root") {
		t.Errorf("dnsd's config is %v\n%s", err, b)
	}
}
