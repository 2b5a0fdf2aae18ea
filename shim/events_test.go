package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/gantryd/gantry/services/runner"
)

const patience = 20 * time.Second

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// A taker takes events, after it has refused a while.
type taker struct {
	mu     sync.Mutex
	refuse int
	poison string // topic that is never taken
	took   []runner.Event
}

func (k *taker) Publish(_ context.Context, e runner.Event) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refuse > 0 {
		k.refuse--
		return errors.New("not now")
	}
	if string(e.Topic) == k.poison {
		return fmt.Errorf("never: %w", errdefs.ErrInvalidArgument)
	}
	k.took = append(k.took, e)
	return nil
}

func (k *taker) topics() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var s []string
	for _, e := range k.took {
		s = append(s, string(e.Topic))
	}
	return strings.Join(s, " ")
}

// publishing runs the queue's work until the test ends.
func publishing(t *testing.T, q *queue, p runner.Publisher) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- q.publish(ctx, p) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("publish ended with %v", err)
		}
		q.close()
	})
}

func waitDrained(t *testing.T, q *queue) {
	t.Helper()
	select {
	case <-q.drained():
	case <-time.After(patience):
		t.Fatal("events are not taken")
	}
}

func TestEventsWaitWhileTheyAreHeld(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bundle")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, holdRecord), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	q := newQueue(dir, quiet(), true)
	k := &taker{}
	publishing(t, q, k)
	q.add(runner.Event{Topic: runner.Created})
	// Its bundle is moved meanwhile.
	moved := filepath.Join(filepath.Dir(dir), ".bundle")
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	<-time.After(50 * time.Millisecond)
	if got := k.topics(); got != "" {
		t.Errorf("taken are %s while events are held", got)
	}
	if err := os.Remove(filepath.Join(moved, holdRecord)); err != nil {
		t.Fatal(err)
	}
	waitDrained(t, q)
	if got := k.topics(); got != "/tasks/create" {
		t.Errorf("taken are %s", got)
	}
}

func TestEventsAreTakenInOrderHoweverOftenRefused(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("", func(t *testing.T) {
		q := newQueue(t.TempDir(), quiet(), true)
		k := &taker{refuse: 3}
		publishing(t, q, k)
		for _, topic := range []runner.Topic{runner.Created, runner.Started, runner.Exited} {
			q.add(runner.Event{Topic: topic})
		}
		waitDrained(t, q)
		if got, want := k.topics(), "/tasks/create /tasks/start /tasks/exit"; got != want {
			t.Errorf("taken are %s, want %s", got, want)
		}
		for i := range k.took[1:] {
			if !k.took[i+1].Time.After(k.took[i].Time) {
				t.Errorf("event %d has the time of the one before", i+1)
			}
		}
	})
}

func TestAnEventThatNobodyWillTakeDoesNotHoldTheOthers(t *testing.T) {
	q := newQueue(t.TempDir(), quiet(), true)
	k := &taker{poison: "/tasks/oom"}
	publishing(t, q, k)
	q.add(runner.Event{Topic: runner.OutOfMemory})
	q.add(runner.Event{Topic: runner.Exited})
	waitDrained(t, q)
	if got := k.topics(); got != "/tasks/exit" {
		t.Errorf("taken are %s, want /tasks/exit", got)
	}
}

func TestEventsThatNobodyTookAreInTheBundle(t *testing.T) {
	dir := t.TempDir()
	q := newQueue(dir, quiet(), true)
	defer q.close()
	for range 2*eventsMax + 10 {
		q.add(runner.Event{Topic: runner.Paused})
		q.pop()
		q.add(runner.Event{Topic: runner.Resumed})
		if len(q.rows) > 1 {
			q.pop()
		}
	}
	for len(q.rows) > 1 {
		q.pop()
	}
	q.add(runner.Event{Topic: runner.Exited, ContainerID: "a"})
	b, err := os.ReadFile(filepath.Join(dir, eventsRecord))
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(b), "\n"); lines > 2*eventsMax+2 {
		t.Errorf("the file has %d lines for %d events", lines, len(q.rows))
	}
	if !strings.Contains(string(b), `"topic":"/tasks/exit"`) {
		t.Error("the last event is not in the file")
	}
}

func TestAFullQueueKeepsRoomForWhatLivesAlready(t *testing.T) {
	q := newQueue(t.TempDir(), quiet(), true)
	defer q.close()
	for range eventsRoom {
		if !q.hasRoom() {
			t.Fatal("no room in the first half")
		}
		q.add(runner.Event{Topic: runner.Paused})
	}
	if q.hasRoom() {
		t.Error("room for something new in the second half")
	}
}

func TestWithoutATakerNothingIsKept(t *testing.T) {
	dir := t.TempDir()
	q := newQueue(dir, quiet(), false)
	q.add(runner.Event{Topic: runner.Exited})
	waitDrained(t, q)
	if _, err := os.Stat(filepath.Join(dir, eventsRecord)); err == nil {
		t.Error("a file was made")
	}
}
