package eventbus_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/eventbus"
	"github.com/gantryd/gantry/services/event"
)

// A disk that is full refuses events. When there is room they are taken again,
// without a restart, and nothing acknowledged is lost.
func TestAFullDiskRefusesEventsUntilThereIsRoom(t *testing.T) {
	disk, _ := mountDisk(t, newDisk(t, 64<<20))
	cfg := eventbus.Default()
	cfg.Root = filepath.Join(disk, "eventbus")
	b := openAt(t, cfg, filepath.Join(t.TempDir(), "nats.sock"))
	t.Cleanup(b.stop) // before the disk is unmounted
	nats := dial(t, b.socket)
	n := 0
	publish := func(to event.Publisher) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		e := event.Event{ID: fmt.Sprintf("a/b/%d", n+1), Namespace: "one", Topic: "/a/b", Time: at, Type: "t", Raw: make([]byte, 10_000)}
		err := to.Publish(ctx, e)
		if err == nil {
			n++
		}
		return err
	}
	for range 2 {
		for range 50 {
			if err := publish(b); err != nil {
				t.Fatal(err)
			}
		}
		makeRoom := fill(t, disk)
		var err error
		for err == nil { // what was reserved is taken yet
			err = publish(b)
		}
		if !errors.Is(err, errdefs.ErrResourceExhausted) {
			t.Errorf("Publish on a full disk: %v", err)
		}
		if err := publish(nats); !errors.Is(err, errdefs.ErrResourceExhausted) {
			t.Errorf("Publish by NATS on a full disk: %v", err)
		}
		makeRoom()
		if err := publish(nats); err != nil {
			t.Errorf("Publish when there is room: %v", err)
		}
	}
	check := func(events []event.Event) {
		t.Helper()
		if len(events) < n {
			t.Errorf("%d events are told, %d were acknowledged", len(events), n)
		}
		for i, e := range events {
			if want := fmt.Sprintf("a/b/%d", i+1); e.ID != want && e.Namespace == "one" {
				t.Fatalf("event %d is %s", i+1, e.ID)
			}
		}
	}
	if err := b.Publish(t.Context(), event.New("end", at, event.ContainerDelete{ID: "end"})); err != nil {
		t.Fatal(err)
	}
	check(all(t, b))
	b.stop()
	again := openAt(t, cfg, filepath.Join(t.TempDir(), "nats.sock"))
	t.Cleanup(again.stop)
	if err := again.Publish(t.Context(), event.New("end", at, event.ContainerDelete{ID: "end again"})); err != nil {
		t.Fatal(err)
	}
	check(all(t, again))
}
