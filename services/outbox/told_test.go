package outbox_test

import (
	"context"
	"errors"
	"testing"
	"time"

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
	defer d.publishing(eventtest.NewMemory())()
	long, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := d.Told(long); err != nil {
		t.Errorf("Told: %v", err)
	}
}

// An event that somebody else may have told keeps its id.
func TestAddKeepsAnID(t *testing.T) {
	d := open(t, t.TempDir())
	e := event.New("one", time.Now(), event.ContainerDelete{ID: "c"})
	e.ID = "eventbus/17"
	if err := d.Update(t.Context(), func(tx *kv.Tx) error { return d.Add(t.Context(), tx, e) }); err != nil {
		t.Fatal(err)
	}
	m := eventtest.NewMemory()
	events, err := m.Subscribe(t.Context(), event.SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.publishing(m)()
	for got, err := range events {
		if err != nil || got.ID != e.ID {
			t.Errorf("its id is %s, want %s; %v", got.ID, e.ID, err)
		}
		break
	}
}
