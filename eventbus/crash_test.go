package eventbus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/eventbus"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/outbox"
)

const (
	childRoot   = "EVENTBUS_TEST_ROOT"   // of the bus that the child process is
	childSocket = "EVENTBUS_TEST_SOCKET" // on which it serves NATS
	childPlugin = "EVENTBUS_TEST_PLUGIN" // the socket that the child process connects to
)

// child runs a test of this binary in a process of its own.
func child(t *testing.T, test string, env ...string) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.v")
	c.Env = append(os.Environ(), env...)
	c.Stdout, c.Stderr = t.Output(), t.Output()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestServeUntilKilled is the child of TestKillLosesNoEvent.
func TestServeUntilKilled(t *testing.T) {
	root := os.Getenv(childRoot)
	if root == "" {
		t.Skip("is run by TestKillLosesNoEvent")
	}
	cfg := eventbus.Default()
	cfg.Root = root
	_ = os.Remove(os.Getenv(childSocket))
	openAt(t, cfg, os.Getenv(childSocket))
	<-t.Context().Done()
}

// TestKillLosesNoEvent kills the bus under publishers, again and again. Every
// event that was acknowledged is told, once, and each publisher's in its order.
func TestKillLosesNoEvent(t *testing.T) {
	cfg, socket := config(t), filepath.Join(t.TempDir(), "nats.sock")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	ctx, cancel := context.WithCancel(t.Context())
	acked := make([]int, 4)
	some := make(chan struct{}, 1) // something was acknowledged
	var publishers sync.WaitGroup
	for p := range acked {
		c := dial(t, socket)
		publishers.Go(func() {
			for n := 1; ctx.Err() == nil; {
				e := event.New("one", at, event.ContainerDelete{ID: fmt.Sprint(n)})
				e.ID = fmt.Sprintf("p%d/x/%d", p, n)
				if c.Publish(ctx, e) == nil {
					acked[p] = n
					n++
					select {
					case some <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	for range 8 {
		bus := child(t, "TestServeUntilKilled", childRoot+"="+cfg.Root, childSocket+"="+socket)
		select {
		case <-some:
		case <-time.After(30 * time.Second):
			t.Error("nothing is acknowledged within 30 s")
		}
		<-time.After(time.Duration(random.IntN(300)) * time.Millisecond)
		if err := bus.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = bus.Wait()
	}
	cancel()
	publishers.Wait()

	_ = os.Remove(socket)
	b := openAt(t, cfg, socket)
	end := event.New("end", at, event.ContainerDelete{ID: "end"})
	if err := b.Publish(t.Context(), end); err != nil {
		t.Fatal(err)
	}
	told := make([]int, len(acked))
	for _, e := range all(t, b) {
		var p, n int
		if _, err := fmt.Sscanf(e.ID, "p%d/x/%d", &p, &n); err != nil {
			continue
		}
		if n != told[p]+1 {
			t.Fatalf("publisher %d: event %d is told after %d", p, n, told[p])
		}
		told[p] = n
	}
	total := 0
	for p := range acked {
		if told[p] < acked[p] {
			t.Errorf("publisher %d: %d events were acknowledged, %d are told", p, acked[p], told[p])
		}
		total += acked[p]
	}
	t.Logf("%d events acknowledged", total)
}

// all returns what is kept, up to the event of the namespace "end".
func all(t *testing.T, b event.Bus) []event.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	now, err := b.Subscribe(ctx, event.SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// The epoch is learnt from an event.
	if err := b.Publish(ctx, event.New("epoch", time.Now(), event.ContainerDelete{ID: "epoch"})); err != nil {
		t.Fatal(err)
	}
	var cursor event.Cursor
	for e, err := range now {
		if err != nil {
			t.Fatal(err)
		}
		cursor.Epoch = e.Epoch
		break
	}
	kept, err := b.Subscribe(ctx, event.SubscribeOptions{After: &cursor})
	if err != nil {
		t.Fatal(err)
	}
	var events []event.Event
	for e, err := range kept {
		if err != nil {
			t.Fatal(err)
		}
		if e.Namespace == "end" {
			break
		}
		events = append(events, e)
	}
	return events
}

// A change in a daemon reaches a subscriber, also when the bus restarts in
// between.
func TestFromTheOutboxToTheSubscriber(t *testing.T) {
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	db, err := kv.Open(kv.Options{Dir: filepath.Join(t.TempDir(), "db"), Owner: "taskd", Schema: 1, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	box, err := outbox.Open(db, "taskd", log)
	if err != nil {
		t.Fatal(err)
	}
	cfg, socket := config(t), filepath.Join(t.TempDir(), "nats.sock")
	ctx, cancel := context.WithCancel(t.Context())
	published := make(chan error, 1)
	go func() { published <- box.Publish(ctx, dial(t, socket)) }()
	defer func() {
		cancel()
		if err := <-published; err != nil {
			t.Errorf("Publish: %v", err)
		}
	}()

	told := 0
	tell := func(ns string, n int) {
		t.Helper()
		for range n {
			told++
			if err := db.Update(t.Context(), func(tx *kv.Tx) error {
				return box.Add(t.Context(), tx, event.New(ns, time.Now(), event.ContainerDelete{ID: fmt.Sprint("c", told)}))
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	tell("one", 20) // nobody is there yet
	b := openAt(t, cfg, socket)
	tell("one", 20)
	b.stop()
	tell("one", 20)
	b = openAt(t, cfg, socket)
	tell("one", 20)
	tell("end", 1)
	events := all(t, b)
	if len(events) != 80 && len(events) != 81 { // with the one that all published
		t.Errorf("%d events are told, want 80", len(events))
	}
	n := 0
	for _, e := range events {
		if e.Namespace == "one" {
			if n++; e.Subject != fmt.Sprint("c", n) || e.ID != fmt.Sprintf("taskd/%s/%d", db.Incarnation(), n) {
				t.Fatalf("event %d is %s of %s", n, e.ID, e.Subject)
			}
		}
	}
}

// TestAPluginOfAnotherUserMayOnlyListen is a process of another user.
func TestAPluginOfAnotherUserMayOnlyListen(t *testing.T) {
	if socket := os.Getenv(childPlugin); socket != "" {
		listen(t, socket)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: runs a process of another user")
	}
	// Where the other user can go.
	dir, err := os.MkdirTemp("", "gantry")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "test")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := config(t)
	cfg.Plugins = []eventbus.Plugin{{Name: "p", User: "65534", Subscribe: []string{"gantry.v1.*.*.>"}}}
	b := openAt(t, cfg, filepath.Join(dir, "nats.sock"))
	c := exec.Command(path, "-test.run=^TestAPluginOfAnotherUserMayOnlyListen$")
	c.Dir = dir
	c.Env = []string{childPlugin + "=" + b.socket}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	for n := 0; ; n++ {
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the other user: %v\n%s", err, out.String())
			}
			if e := b.last(t); e.Namespace != "one" {
				t.Errorf("the last event is %+v", e)
			}
			return
		case <-time.After(20 * time.Millisecond):
			if err := b.Publish(t.Context(), event.New("one", time.Now(), event.ContainerDelete{ID: "c"})); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// last returns the last event that is kept.
func (b running) last(t *testing.T) event.Event {
	t.Helper()
	if err := b.Publish(t.Context(), event.New("end", time.Now(), event.ContainerDelete{ID: "end"})); err != nil {
		t.Fatal(err)
	}
	events := all(t, b)
	return events[len(events)-1]
}

func listen(t *testing.T, socket string) {
	refused := make(chan error, 16)
	nc := plugin(t, socket, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
	sub, err := nc.SubscribeSync("gantry.v1.*.*.>")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sub.NextMsg(10 * time.Second); err != nil {
		t.Errorf("it is told nothing: %v", err)
	}
	for _, s := range []string{"gantry.v1.two.tasks.exit", "$JS.API.STREAM.PURGE.EVENTS", "$JS.API.STREAM.INFO.EVENTS", "$JS.API.CONSUMER.CREATE.EVENTS"} {
		if err := nc.Publish(s, nil); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-refused:
			if !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("publish to %s: %v", s, err)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("publish to %s is not refused", s)
		}
	}
}
