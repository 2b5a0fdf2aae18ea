package conformance

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/event"
)

const (
	chaosTime = "CHAOS_TIME" // how long daemons are killed
	chaosSeed = "CHAOS_SEED" // of what is killed when, and of what containers do

	chaosNamespace = "default"
	chaosWorkers   = 3

	// drainTime is how long the suite has to tell everything once nobody kills
	// it any more.
	drainTime = time.Minute
)

// TestChaosLosesNoEvent runs containers while daemons are killed -9 at random,
// all six of them, every second or two. Each durable subscriber is told of each
// container's creation, start, exit and deletion, in order and with the right
// exit status; no id has two contents; and all see one order.
func TestChaosLosesNoEvent(t *testing.T) {
	length, seed := 12*time.Second, uint64(20261121)
	if v := os.Getenv(chaosTime); v != "" {
		var err error
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatalf("%s: %v", chaosTime, err)
		}
		seed = uint64(time.Now().UnixNano())
	}
	if v := os.Getenv(chaosSeed); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("%s: %v", chaosSeed, err)
		}
	}
	s := startSuite(t)
	t.Logf("%s=%d %s=%v", chaosSeed, seed, chaosTime, length)
	image := s.importDemo()
	c, err := client.Dial(s.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	chaos := &chaos{suite: s, client: c, image: image, lives: make(map[string]*life)}
	t.Cleanup(chaos.removeLeft)

	watchers := chaos.subscribe()
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var working sync.WaitGroup
	for w := range chaosWorkers {
		working.Go(func() { chaos.work(ctx, w, rand.New(rand.NewPCG(seed, uint64(w)))) })
	}
	kills := chaos.kill(ctx, rand.New(rand.NewPCG(seed, chaosWorkers)), watchers)
	working.Wait()

	quiet := time.Now()
	for _, w := range watchers {
		s.eventuallyTold(w, func(told []told) error { return chaos.check(told) })
	}
	t.Logf("all was told %v after the last container", time.Since(quiet).Round(time.Millisecond))
	chaos.checkOrder(watchers)
	ended, failed := chaos.outcome()
	t.Logf("%d containers, %d calls failed; kills: %v", ended, len(failed), kills)
	for _, err := range failed[:min(len(failed), 20)] {
		t.Logf("a call failed: %v", err)
	}
	for _, w := range watchers {
		all, _ := w.told()
		t.Logf("%s was told %d events", w.name(), len(all))
	}
	if ended == 0 {
		t.Error("no container was run")
	}
}

// chaos is a suite under attack.
type chaos struct {
	*suite
	client *client.Client
	image  string

	mu     sync.Mutex
	lives  map[string]*life // guarded by mu
	failed []error          // guarded by mu
}

// A life is what a worker knows of its container. What was acknowledged must
// be told; what was tried may be.
type life struct {
	status uint32 // what it exits with
	acked  int    // steps of lifeTopics that are done
	done   bool   // all of them are
	shot   bool   // its shim was killed: then the status is unknown, or calls fail
}

// lifeTopics are what is told of a container, in this order: of its record by
// taskd, of its task by the shim.
var lifeTopics = []string{
	"/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete", "/containers/delete",
}

// work runs one container after the other until ctx ends. It is a patient
// client: what fails is tried again until it is done.
func (c *chaos) work(ctx context.Context, worker int, random *rand.Rand) {
	for n := 1; ctx.Err() == nil; n++ {
		id, status := fmt.Sprintf("w%d-%d", worker, n), uint32(random.IntN(4)*random.IntN(85))
		script := fmt.Sprintf("sleep 0.%d; exit %d", random.IntN(4), status)
		c.live(id, status, client.Program{Args: []string{"/bin/sh", "-c", script}})
	}
}

func (c *chaos) live(id string, status uint32, program client.Program) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	l := &life{status: status}
	c.mu.Lock()
	c.lives[id] = l
	c.mu.Unlock()
	ns := c.client.In(chaosNamespace)
	k, err := ns.Create(ctx, client.CreateOptions{ID: id, Image: c.image, Program: program})
	if err != nil {
		c.fail(id, "create", err)
		return
	}
	c.acked(l, 1)
	p, err := k.Start(ctx, client.Streams{})
	if err != nil {
		c.fail(id, "start", err)
		c.removed(ctx, k, id, true)
		return
	}
	c.acked(l, 3)
	exit, err := p.Wait(ctx)
	switch {
	case err != nil:
		c.fail(id, "wait", err)
	case exit.Status != status && !c.isShot(l):
		c.t.Errorf("%s: the client was told status %d, want %d", id, exit.Status, status)
	default:
		c.acked(l, 4)
	}
	if err := p.Delete(ctx); err != nil {
		c.fail(id, "delete task", err)
		c.removed(ctx, k, id, true)
		return
	}
	c.acked(l, 5)
	if c.removed(ctx, k, id, false) {
		c.mu.Lock()
		l.acked, l.done = len(lifeTopics), true
		c.mu.Unlock()
	}
}

func (c *chaos) removed(ctx context.Context, k *client.Container, id string, force bool) bool {
	err := k.Delete(ctx, force)
	if err != nil {
		c.fail(id, "delete", err)
	}
	return err == nil
}

func (c *chaos) acked(l *life, steps int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l.acked = steps
}

func (c *chaos) fail(id, what string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.lives[id].shot {
		c.failed = append(c.failed, fmt.Errorf("%s: %s: %w", id, what, err))
	}
}

func (c *chaos) isShot(l *life) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return l.shot
}

func (c *chaos) outcome() (ended int, failed []error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.lives {
		if l.done {
			ended++
		}
	}
	return ended, c.failed
}

// removeLeft removes the containers of calls that failed.
func (c *chaos) removeLeft() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.t.Context()), time.Minute)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, l := range c.lives {
		if l.done {
			continue
		}
		if k, err := c.client.In(chaosNamespace).Container(ctx, id); err == nil {
			if err := k.Delete(ctx, true); err != nil {
				c.t.Logf("remove %s: %v", id, err)
			}
		}
	}
}

// kill kills daemons, and the subscriber that is a process, until ctx ends. It
// returns how often each died.
func (c *chaos) kill(ctx context.Context, random *rand.Rand, watchers []watcher) map[string]int {
	// The bus and who tells it of tasks are what most depends on.
	victims := []string{"eventbus", "taskd", "eventbus", "taskd", "contentd", "snapshotd", "imaged", "gatewayd", "subscriber", "shim", "shim"}
	kills := make(map[string]int)
	for {
		pause := time.Duration(500+random.IntN(1500)) * time.Millisecond
		victim := victims[random.IntN(len(victims))]
		select {
		case <-ctx.Done():
			return kills
		case <-time.After(pause):
		}
		switch victim {
		case "shim":
			c.shoot(random)
		case "subscriber":
			for _, w := range watchers {
				if p, ok := w.(*childWatcher); ok {
					p.restart()
				}
			}
		default:
			if pid := c.pid(victim); pid != 0 { // else it is starting
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		kills[victim]++
	}
}

// shoot kills the shim of some container.
func (c *chaos) shoot(random *rand.Rand) {
	shims := processesOf(filepath.Dir(c.address))
	random.Shuffle(len(shims), func(i, j int) { shims[i], shims[j] = shims[j], shims[i] })
	for _, pid := range shims {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		args := strings.Split(string(cmdline), "\x00")
		i := slices.Index(args, "-id")
		if i < 0 || !slices.Contains(args, c.address) || !slices.Contains(args, "serve") {
			continue
		}
		c.mu.Lock()
		l := c.lives[args[i+1]]
		if l != nil {
			l.shot = true
		}
		c.mu.Unlock()
		_ = syscall.Kill(pid, syscall.SIGKILL)
		return
	}
}

// pid returns the process of a daemon, and 0 if it has none now.
func (c *chaos) pid(daemon string) int {
	for _, pid := range processesOf(filepath.Join(c.state, "config")) {
		if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); strings.Contains(string(b), "/"+daemon+".toml") {
			return pid
		}
	}
	return 0
}

// subscribe starts the subscribers and returns when each is told what happens.
func (c *chaos) subscribe() []watcher {
	c.t.Helper()
	watchers := []watcher{
		c.watch("gRPC", c.client.Events),
		c.watch("NATS", c.dialNATS(filepath.Join(c.state, "nats.sock"))),
		c.watchInChild(),
	}
	for _, w := range watchers {
		c.eventually(20*time.Second, w.name()+" is told something", func() error {
			if err := c.client.Events.Publish(c.t.Context(), event.New(chaosNamespace, time.Now(), event.ContainerDelete{ID: "begin"})); err != nil {
				return err
			}
			all, err := w.told()
			if err == nil && len(all) == 0 {
				err = errors.New("nothing yet")
			}
			return err
		})
	}
	return watchers
}

// childEnv is what a child process needs of the test's environment.
func childEnv(kv ...string) []string { return append(os.Environ(), kv...) }

// testChild runs a test of this binary in a process of its own.
func testChild(test string, env ...string) *exec.Cmd {
	c := exec.Command(os.Args[0], "-test.run=^"+test+"$")
	c.Env = childEnv(env...)
	return c
}
