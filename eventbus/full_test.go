package eventbus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/eventbus"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/outbox"
)

// TestServeUntilBroken is the child of TestAFullDiskIsOverByItself. It ends as
// the daemon does: when Open or one of its works has failed.
func TestServeUntilBroken(t *testing.T) {
	root, socket := os.Getenv(childRoot), os.Getenv(childSocket)
	if root == "" {
		t.Skip("is run by TestAFullDiskIsOverByItself")
	}
	cfg := eventbus.Default()
	cfg.Root = root
	b, err := eventbus.Open(cfg, eventbus.Needs{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(socket)
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 3)
	for _, work := range []func(context.Context) error{
		b.Watch, func(ctx context.Context) error { return b.ServeNATS(ctx, lis) },
	} {
		go func() { failed <- work(t.Context()) }()
	}
	t.Error(<-failed)
}

// A keeper runs the bus in a child process and starts it again when it ends.
type keeper struct {
	mu     sync.Mutex
	now    *exec.Cmd // guarded by mu
	starts int       // guarded by mu
}

func keep(t *testing.T, root, socket string) *keeper {
	k := &keeper{}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); k.kill(); running.Wait() })
	running.Go(func() {
		for ctx.Err() == nil {
			k.mu.Lock()
			if ctx.Err() == nil {
				k.now = child(t, "TestServeUntilBroken", childRoot+"="+root, childSocket+"="+socket)
				k.starts++
			}
			c := k.now
			k.mu.Unlock()
			_ = c.Wait()
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	})
	return k
}

func (k *keeper) kill() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now != nil {
		_ = k.now.Process.Kill()
	}
}

func (k *keeper) started() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.starts
}

// TestAFullDiskIsOverByItself fills the disk of the stream under a daemon that
// makes changes, kills the bus while it is full, and makes room. Nobody does
// anything else, and a subscriber is told of every change, in order. Meanwhile
// the bus does not start again and again.
func TestAFullDiskIsOverByItself(t *testing.T) {
	disk, _ := mountDisk(t, newDisk(t, 64<<20))
	socket := filepath.Join(t.TempDir(), "nats.sock")
	k := keep(t, filepath.Join(disk, "eventbus"), socket)
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
	ctx, cancel := context.WithCancel(t.Context())
	var works sync.WaitGroup
	defer works.Wait()
	defer cancel()
	works.Go(func() {
		if err := box.Publish(ctx, dial(t, socket)); err != nil {
			t.Errorf("Publish: %v", err)
		}
	})
	told := make(chan event.Event, 1000)
	subscriber := dial(t, socket)
	works.Go(func() {
		if err := followOn(ctx, subscriber, told); err != nil {
			t.Errorf("the subscriber: %v", err)
		}
	})

	changes, heard := 0, 0
	change := func(n int) {
		t.Helper()
		for range n {
			changes++
			e := event.Event{Namespace: "one", Topic: "/a/b", Time: at, Type: "t", Subject: fmt.Sprint(changes), Raw: make([]byte, 20_000)}
			if err := db.Update(t.Context(), func(tx *kv.Tx) error { return box.Add(t.Context(), tx, e) }); err != nil {
				t.Fatal(err)
			}
		}
	}
	hear := func() {
		t.Helper()
		for patience := time.After(40 * time.Second); heard < changes; {
			select {
			case e := <-told:
				if e.Namespace != "one" {
					continue
				}
				if heard++; e.ID != fmt.Sprintf("taskd/%s/%d", db.Incarnation(), heard) {
					t.Fatalf("event %d is %s", heard, e.ID)
				}
			case <-patience:
				t.Fatalf("%d changes, and the subscriber was told of %d", changes, heard)
			}
		}
	}
	// The subscriber has a cursor when it has been told something.
	eventually(t, "the subscriber listens", func() error {
		if err := subscriber.Publish(t.Context(), event.New("begin", time.Now(), event.ContainerDelete{ID: "c"})); err != nil {
			return err
		}
		select {
		case <-told:
			return nil
		case <-time.After(100 * time.Millisecond):
			return errors.New("not yet")
		}
	})
	change(20)
	hear()
	makeRoom := fill(t, disk)
	eventually(t, "the bus takes nothing", func() error {
		change(20) // what was reserved for the stream is taken yet
		if w, err := box.Waiting(); err != nil || w.Depth == 0 || w.Away.IsZero() {
			return fmt.Errorf("%+v, %w", w, err)
		}
		return nil
	})
	k.kill()
	change(20)
	<-time.After(3 * time.Second)
	t.Logf("started %d times when there is room again", k.started())
	if n := k.started(); n > 4 {
		t.Errorf("the bus was started %d times while the disk was full", n)
	}
	makeRoom()
	hear()
}

// fill fills a disk to the last byte.
func fill(t *testing.T, disk string) (makeRoom func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(disk, "filling"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size >= 512; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
	return func() {
		if err := os.Remove(f.Name()); err != nil {
			t.Error(err)
		}
	}
}

// followOn hands on events, whatever happens to the bus. A gap is an error.
func followOn(ctx context.Context, bus event.Subscriber, told chan<- event.Event) error {
	var o event.SubscribeOptions
	for {
		events, err := bus.Subscribe(ctx, o)
		for e := range events2(events, &err) {
			o.After = &event.Cursor{Epoch: e.Epoch, Sequence: e.Sequence}
			told <- e
		}
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, errdefs.ErrUnavailable) {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
