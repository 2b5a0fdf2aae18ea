package eventbus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/outbox"
)

// TestABusThatIsAwayFillsTheOutbox has the bus away until the disk of a daemon's
// database is nearly full. What would grow is refused, and says why; what frees
// space goes on and is told of; and nothing that was acknowledged is lost.
func TestABusThatIsAwayFillsTheOutbox(t *testing.T) {
	disk, unmount := mountDisk(t, newDisk(t, 64<<20))
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	db, err := kv.Open(kv.Options{Dir: filepath.Join(disk, "db"), Owner: "taskd", Schema: 1, FreeMin: 24 << 20, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close the database: %v", err)
		}
		unmount()
	})
	box, err := outbox.Open(db, "taskd", log)
	if err != nil {
		t.Fatal(err)
	}
	acked := 0
	change := func(in func(context.Context, func(*kv.Tx) error) error) error {
		e := event.Event{Namespace: "one", Topic: "/a/b", Time: at, Type: "t", Raw: make([]byte, 40_000)}
		err := in(t.Context(), func(tx *kv.Tx) error { return box.Add(t.Context(), tx, e) })
		if err == nil {
			acked++
		}
		return err
	}
	for err = nil; err == nil && acked < 2000; {
		err = change(db.Update)
	}
	if !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Fatalf("after %d changes: %v", acked, err)
	}
	t.Logf("after %d changes: %v", acked, err)
	for range 20 {
		if err := change(db.Release); err != nil {
			t.Fatalf("what frees space: %v", err)
		}
	}
	if w, err := box.Waiting(); err != nil || w.Depth != acked {
		t.Errorf("waiting are %+v, %v; want %d", w, err, acked)
	}

	b := open(t, config(t))
	ctx, cancel := context.WithCancel(t.Context())
	published := make(chan error, 1)
	go func() { published <- box.Publish(ctx, b) }()
	defer func() {
		cancel()
		if err := <-published; err != nil {
			t.Errorf("Publish: %v", err)
		}
	}()
	eventually(t, "the outbox is empty", func() error {
		if w, err := box.Waiting(); err != nil || w.Depth > 0 {
			return fmt.Errorf("%+v, %w", w, err)
		}
		return nil
	})
	if err := b.Publish(t.Context(), event.New("end", at, event.ContainerDelete{ID: "end"})); err != nil {
		t.Fatal(err)
	}
	told := 0
	for _, e := range all(t, b) {
		if e.Namespace != "one" {
			continue
		}
		if told++; e.ID != fmt.Sprintf("taskd/%s/%d", db.Incarnation(), told) {
			t.Fatalf("event %d is %s", told, e.ID)
		}
	}
	if told != acked {
		t.Errorf("%d events are told of %d changes", told, acked)
	}
}
