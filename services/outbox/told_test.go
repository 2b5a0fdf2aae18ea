package outbox_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventtest"
	"github.com/gantryd/gantry/services/kv"
)

func TestToldWaitsForWhatIsInTheBox(t *testing.T) {
	d := open(t, t.TempDir())
	if err := d.Told(t.Context()); err != nil {
		t.Errorf("Told of an empty box: %v", err)
	}
	d.tell("c1")
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := d.Told(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Told while nobody publishes: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	published := make(chan error, 1)
	go func() { published <- d.Publish(ctx, eventtest.NewMemory(nil)) }()
	if err := d.Told(t.Context()); err != nil {
		t.Errorf("Told: %v", err)
	}
	stop()
	if err := <-published; err != nil {
		t.Error(err)
	}
	// What comes later is not waited for.
	told := make(chan error, 1)
	d.tell("c2")
	ctx, stop = context.WithCancel(t.Context())
	defer stop()
	go func() { told <- d.Told(t.Context()) }()
	go func() { published <- d.Publish(ctx, &upTo{left: 1}) }()
	d.tell("c3")
	if err := <-told; err != nil {
		t.Errorf("Told: %v", err)
	}
	stop()
	if err := <-published; err != nil {
		t.Error(err)
	}
}

// upTo takes some events and no more.
type upTo struct{ left int }

func (u *upTo) Publish(context.Context, event.Event) error {
	if u.left--; u.left < 0 {
		return errdefs.ErrUnavailable
	}
	return nil
}

// An event that somebody else may have told keeps its id.
func TestAddKeepsAnID(t *testing.T) {
	d := open(t, t.TempDir())
	e := event.New("one", time.Now(), event.ContainerDelete{ID: "c"})
	e.ID = "eventbus/17"
	if err := d.Update(t.Context(), func(tx *kv.Tx) error { return d.Add(t.Context(), tx, e) }); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	ctx, stop := context.WithCancel(t.Context())
	published := make(chan error, 1)
	go func() { published <- d.Publish(ctx, taking(got)) }()
	if id := <-got; id != e.ID {
		t.Errorf("its id is %s, want %s", id, e.ID)
	}
	stop()
	if err := <-published; err != nil {
		t.Error(err)
	}
}

// taking hands on the ids of events.
type taking chan string

func (c taking) Publish(_ context.Context, e event.Event) error {
	c <- e.ID
	return nil
}
