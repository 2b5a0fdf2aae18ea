package eventbus_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/eventbus"
	"github.com/gantryd/gantry/services/event"
)

// damages are what can happen to a file.
var damages = []struct {
	name string
	do   func(name string, b []byte) error
}{
	{"removed", func(name string, _ []byte) error { return os.Remove(name) }},
	{"emptied", func(name string, _ []byte) error { return os.Truncate(name, 0) }},
	{"cut in half", func(name string, b []byte) error { return os.Truncate(name, int64(len(b)/2)) }},
	{"cut by a byte", func(name string, b []byte) error { return os.Truncate(name, int64(max(len(b)-1, 0))) }},
	{"a bit flipped at its start", flip(0, 8)},
	{"a bit flipped in its middle", flip(1, 2)},
	{"a bit flipped at its end", flip(1, 1)},
	{"longer", func(name string, b []byte) error { return os.WriteFile(name, append(b, "what is this?"...), 0o600) }},
	{"a directory", func(name string, _ []byte) error {
		return errors.Join(os.Remove(name), os.Mkdir(name, 0o700))
	}},
}

func flip(part, of int) func(string, []byte) error {
	return func(name string, b []byte) error {
		if len(b) == 0 {
			return nil
		}
		b = slices.Clone(b)
		b[min(len(b)*part/of, len(b)-1)] ^= 4
		return os.WriteFile(name, b, 0o600)
	}
}

const (
	storedEvents = 14 // in several files of the store
	toldBefore   = 2  // to a subscriber who comes back
)

// stored makes a stream, in files, and returns where a subscriber stands that
// was told the first of its events.
func stored(t *testing.T) (cfg eventbus.Config, after event.Cursor) {
	t.Helper()
	// In memory, if it can be: there are many copies of it.
	dir, err := os.MkdirTemp("/dev/shm", "eventbus")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg = config(t)
	cfg.Root, cfg.RetainMiB = filepath.Join(dir, "stored"), 16
	b := open(t, cfg)
	for n := 1; n <= storedEvents; n++ {
		if err := b.Publish(t.Context(), storedEvent(n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Publish(t.Context(), event.New("end", at, event.ContainerDelete{ID: "end"})); err != nil {
		t.Fatal(err)
	}
	events := all(t, b)
	b.stop()
	return cfg, event.Cursor{Epoch: events[toldBefore-1].Epoch, Sequence: events[toldBefore-1].Sequence}
}

func storedEvent(n int) event.Event {
	return event.Event{
		ID: fmt.Sprintf("a/b/%d", n), Namespace: "one", Topic: "/a/b", Time: at, Type: "t",
		Raw: []byte(strings.Repeat(fmt.Sprintf("%07d ", n), 900_000/8)),
	}
}

// A stream that was damaged opens, whatever the damage, with what is good of it,
// or another takes its place. Who follows it is told what is next or that there
// is a gap: never nothing, and never another event in the place of one.
func TestADamagedStreamIsNoSilence(t *testing.T) {
	cfg, after := stored(t)
	var files []string
	if err := filepath.WalkDir(cfg.Root, func(name string, d fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(cfg.Root, name); err == nil && d.Type().IsRegular() && rel != "lock" {
			files = append(files, rel)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Log(files)
	var segments, chosen []string
	for _, f := range files {
		if strings.HasSuffix(f, ".seg") {
			segments = append(segments, f)
		} else {
			chosen = append(chosen, f)
		}
	}
	if len(segments) < 3 {
		t.Fatalf("the stream has the files %v: fewer than three", segments)
	}
	chosen = append(chosen, segments[0], segments[len(segments)/2], segments[len(segments)-1])
	for _, file := range chosen {
		for i, d := range damages {
			if i%4 != 0 && !strings.Contains(file, ".seg") {
				continue // it is small
			}
			t.Run(filepath.Base(file)+" "+d.name, func(t *testing.T) {
				damaged := cfg
				damaged.Root = filepath.Join(filepath.Dir(cfg.Root), "damaged")
				t.Cleanup(func() { os.RemoveAll(damaged.Root) })
				if err := os.CopyFS(damaged.Root, os.DirFS(cfg.Root)); err != nil {
					t.Fatal(err)
				}
				name := filepath.Join(damaged.Root, file)
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				if err := d.do(name, b); err != nil {
					t.Fatal(err)
				}
				goesOn(t, damaged, after)
			})
		}
	}
}

// goesOn opens a damaged stream and follows it from a cursor until it tells
// something new.
func goesOn(t *testing.T, cfg eventbus.Config, after event.Cursor) {
	b := open(t, cfg)
	defer b.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	fresh := event.New("fresh", time.Now(), event.ContainerDelete{ID: "fresh"})
	if err := b.Publish(ctx, fresh); err != nil {
		t.Fatalf("Publish: %v", err)
	}
	told, gaps := follow(ctx, t, b, after)
	last := toldBefore
	if gaps > 0 && len(told) > 0 && told[0] == 1 {
		last = 0 // another epoch: from the oldest again
	}
	for _, n := range told {
		if n <= last {
			t.Errorf("event %d is told after %d", n, last)
		}
		if n != last+1 && gaps == 0 {
			t.Errorf("event %d is told after %d, and no gap", n, last)
		}
		last = n
	}
	if last < storedEvents && gaps == 0 {
		t.Errorf("the last is %d, and no gap is told", last)
	}
	t.Logf("%d events were told, with %d gaps", len(told), gaps)
}

// follow returns what is told past a cursor, up to the fresh event.
func follow(ctx context.Context, t *testing.T, b event.Bus, after event.Cursor) (told []int, gaps int) {
	t.Helper()
	for gaps < 10 {
		events, err := b.Subscribe(ctx, event.SubscribeOptions{After: &after})
		var gap *event.Gap
		for e := range events2(events, &err) {
			after = event.Cursor{Epoch: e.Epoch, Sequence: e.Sequence}
			if e.Namespace == "fresh" {
				return told, gaps
			}
			n := 0
			if _, scanErr := fmt.Sscanf(e.ID, "a/b/%d", &n); scanErr != nil {
				continue // published by all
			}
			if string(e.Raw) != string(storedEvent(n).Raw) {
				t.Errorf("event %d has other content", n)
			}
			told = append(told, n)
		}
		if !errors.As(err, &gap) {
			t.Fatalf("it ended with %v after %d events", err, len(told))
		}
		gaps++
		if gap.To.Epoch != gap.From.Epoch {
			told = nil
		}
		after = gap.To
	}
	t.Fatal("gaps without end")
	return nil, 0
}

// events2 yields the events of a subscription and leaves its error in err.
func events2(events func(func(event.Event, error) bool), err *error) func(func(event.Event) bool) {
	return func(yield func(event.Event) bool) {
		if *err != nil {
			return
		}
		for e, end := range events {
			if end != nil {
				*err = end
				return
			}
			if !yield(e) {
				return
			}
		}
	}
}

// A stream that nothing happened to stays what it is, however often it is
// opened.
func TestAStreamKeepsItsEpoch(t *testing.T) {
	cfg, after := stored(t)
	for range 3 {
		b := open(t, cfg)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		if err := b.Publish(ctx, event.New("fresh", time.Now(), event.ContainerDelete{ID: "fresh"})); err != nil {
			t.Fatal(err)
		}
		if told, gaps := follow(ctx, t, b, after); len(told) != storedEvents-toldBefore || gaps > 0 {
			t.Errorf("%d events are told, with %d gaps", len(told), gaps)
		}
		cancel()
		b.stop()
	}
}
