package eventbus_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/eventbus"
	"github.com/gantryd/gantry/services/event"
)

// A store that failed to write stays broken until it is opened anew. The bus
// says so and ends once there is room, and nothing acknowledged is lost.
func TestAFullDiskEndsTheBusWhenThereIsRoomAgain(t *testing.T) {
	disk, _ := mountDisk(t, newDisk(t, 64<<20))
	cfg := eventbus.Default()
	cfg.Root = filepath.Join(disk, "eventbus")
	needs := eventbus.Needs{Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	b, err := eventbus.Open(cfg, needs)
	if err != nil {
		t.Fatal(err)
	}
	watched := make(chan error, 1)
	go func() { watched <- b.Watch(t.Context()) }()

	publish := func(n int, took time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), took)
		defer cancel()
		e := event.Event{ID: fmt.Sprintf("a/b/%d", n), Namespace: "one", Topic: "/a/b", Time: at, Type: "t", Raw: make([]byte, 10_000)}
		return b.Publish(ctx, e)
	}
	acked := 0
	for ; acked < 50; acked++ {
		if err := publish(acked+1, 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	filling, err := os.Create(filepath.Join(disk, "filling"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = filling.Write(make([]byte, 1<<20))
	}
	filling.Close()
	for ; ; acked++ {
		if err := publish(acked+1, time.Second); err != nil {
			break
		}
	}
	select {
	case err := <-watched:
		t.Errorf("Watch ended on a full disk: %v", err)
	case <-time.After(3 * time.Second):
	}
	if err := os.Remove(filling.Name()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-watched:
		if err == nil || !strings.Contains(err.Error(), "no space") {
			t.Errorf("Watch: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("Watch did not end")
	}
	if err := b.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}

	again := openAt(t, cfg, filepath.Join(t.TempDir(), "nats.sock"))
	if err := again.Publish(t.Context(), event.New("end", at, event.ContainerDelete{ID: "end"})); err != nil {
		t.Fatal(err)
	}
	events := all(t, again)
	if len(events) < acked {
		t.Errorf("%d events are told, %d were acknowledged", len(events), acked)
	}
	for i, e := range events {
		if want := fmt.Sprintf("a/b/%d", i+1); e.ID != want && e.Namespace == "one" {
			t.Fatalf("event %d is %s", i+1, e.ID)
		}
	}
	t.Cleanup(again.stop) // before the disk is unmounted
}
