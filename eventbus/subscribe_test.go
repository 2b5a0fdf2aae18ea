package eventbus_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/event"
)

// What a plugin is built on, with the bus that restarts beneath it and while it
// is not there itself.
func TestASubscriberMissesNothingWhenTheBusRestarts(t *testing.T) {
	cfg, socket, dir := config(t), filepath.Join(t.TempDir(), "nats.sock"), t.TempDir()
	bus, err := client.DialBus(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	var told []string
	subscribe := func(until string, listed, handled func()) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		err := bus.Subscribe(ctx, client.Subscription{
			Name: "sub", Cursor: filepath.Join(dir, "cursor"), Subjects: []string{"gantry.v1.*.containers.*"},
			Relist: func(context.Context, *event.Gap) error { told = append(told, "list"); listed(); return nil },
			Handle: func(_ context.Context, e event.Event) error {
				if told = append(told, e.Subject); e.Subject == until {
					cancel()
				}
				handled()
				return nil
			},
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("Subscribe: %v, told %q", err, told)
		}
	}
	b, n := openAt(t, cfg, socket), 0
	publish := func(more int) {
		for range more {
			n++
			for _, p := range []event.Payload{event.ContentDelete{Digest: "d"}, event.ContainerDelete{ID: fmt.Sprint(n)}} {
				if err := b.Publish(t.Context(), event.New("one", at.Add(time.Duration(n)), p)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	restart := func() { b.stop(); b = openAt(t, cfg, socket) }
	subscribe("5", func() { publish(5) }, func() {})
	publish(5)
	restart()
	subscribe("30", nil, func() {
		if len(told)%10 == 0 && n < 30 {
			restart()
			publish(5)
			restart()
			publish(5)
		}
	})
	want := []string{"list"}
	for i := range 30 {
		want = append(want, fmt.Sprint(i+1))
	}
	if d := cmp.Diff(want, told); d != "" {
		t.Errorf("-want +told\n%s", d)
	}
	st, err := b.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Readers) != 1 || st.Readers[0].Name != "sub" || st.Readers[0].Plugin != "operator" || st.Readers[0].Cursor.Sequence == 0 {
		t.Errorf("the bus says its readers are %+v", st.Readers)
	}
}
