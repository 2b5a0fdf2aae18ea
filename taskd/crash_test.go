package taskd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/task"
)

// A life is what a client was told of a task, from its creation to its removal.
type life struct {
	created, started, killed, waited, deleting, deleted bool
}

// live takes a task through its life until something fails.
func (o *opened) live(ctx context.Context, id string, rootfs ...mount.Mount) (l life, err error) {
	s := o.tasksOne()
	if _, err = s.Create(ctx, task.CreateRequest{ContainerID: id, Rootfs: rootfs}); err != nil {
		return l, err
	}
	l.created = true
	return l, o.goOn(ctx, id, &l)
}

func (o *opened) goOn(ctx context.Context, id string, l *life) error {
	s := o.tasksOne()
	if !l.started {
		if _, err := s.Start(ctx, id, ""); err != nil {
			return fmt.Errorf("start: %w", err)
		}
		l.started = true
	}
	if !l.killed {
		if err := s.Kill(ctx, id, "", sigkill, false); err != nil {
			return fmt.Errorf("kill: %w", err)
		}
		l.killed = true
	}
	if e, err := s.Wait(ctx, id, ""); err != nil || e.Status != 137 {
		return fmt.Errorf("wait: %+v, %w", e, err)
	}
	l.waited, l.deleting = true, true
	if e, err := s.Delete(ctx, id); err != nil || e.Status != 137 {
		return fmt.Errorf("delete: %+v, %w", e, err)
	}
	l.deleted = true
	return nil
}

// cuts calls try with the daemon ended before its first step, then after it,
// then before its second, and so on, until it lives to its end.
func cuts(t *testing.T, try func(t *testing.T, c *cut)) {
	for at := 1; ; at++ {
		lived := false
		for _, after := range []bool{false, true} {
			c := &cut{at: at, after: after}
			t.Run(fmt.Sprintf("step %d after %t", at, after), func(t *testing.T) {
				try(t, c)
				if t.Failed() {
					t.Logf("steps: %q", c.trail)
				}
			})
			lived = c.ended() == nil
		}
		if lived {
			t.Logf("%d steps", at-1)
			return
		}
		if t.Failed() {
			return
		}
	}
}

// TestTaskSurvivesACrashAtEveryStep ends the daemon at every step of a task's
// life. The next one finds what a client was told of, and finishes or removes
// the rest.
func TestTaskSurvivesACrashAtEveryStep(t *testing.T) {
	cuts(t, func(t *testing.T, c *cut) {
		p := newPlace(t)
		first := p.openWhole(t, c)
		first.container(t, "c1", "sleep")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		told, _ := first.live(ctx, "c1")
		first.close(t)
		p.judge(t, p.open(t, &cut{}), "c1", told)
	})
}

// openWhole opens a daemon whose cut counts from now.
func (p place) openWhole(t *testing.T, c *cut) *opened {
	t.Helper()
	at := c.at
	c.at = 0
	o := p.open(t, c)
	c.restart(at)
	return o
}

// judge holds a daemon against what a client was told by the one before.
func (p place) judge(t *testing.T, o *opened, id string, told life) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := o.tasksOne()
	if told.created && !told.deleting {
		eventually(t, "the task is found", func() error {
			got, err := s.Get(ctx, id, "")
			switch {
			case err != nil:
				return err
			case got.Status == task.Unknown:
				return errors.New("its status is unknown")
			case told.waited && (got.Status != task.Stopped || got.Exit.Status != 137):
				return fmt.Errorf("%+v, want stopped with 137", got)
			case told.started && !told.killed && got.Status != task.Running && got.Status != task.Stopped:
				// The kill may have had its effect and not its answer.
				return fmt.Errorf("%+v, want running", got)
			}
			return nil
		})
		finish(t, ctx, o, id)
	}
	// Whatever was not told of goes by itself, so that the id is free.
	eventually(t, "the container can have a task again", func() error {
		_, err := s.Create(ctx, task.CreateRequest{ContainerID: id})
		if !errors.Is(err, errdefs.ErrAlreadyExists) {
			return err
		}
		if got, err := s.Get(ctx, id, ""); err == nil && got.Status == task.Created && !told.created {
			finish(t, ctx, o, id) // it was ended before it could tell
		}
		if told.deleting && !told.deleted {
			if _, err := s.Delete(ctx, id); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
				return err
			}
		}
		return err
	})
	var l life
	if err := o.goOn(ctx, id, &l); err != nil {
		t.Fatalf("a new task: %v", err)
	}
	p.empty(t)
}

// finish ends a task that is somewhere in its life.
func finish(t *testing.T, ctx context.Context, o *opened, id string) {
	t.Helper()
	s := o.tasksOne()
	if err := s.Kill(ctx, id, "", sigkill, false); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		t.Fatalf("kill: %v", err)
	}
	e, err := s.Wait(ctx, id, "")
	if err != nil || e.Status != 137 {
		t.Fatalf("wait: %+v, %v", e, err)
	}
	deleted, err := s.Delete(ctx, id)
	if err != nil || deleted.Status != 137 || !deleted.At.Equal(e.At) {
		t.Fatalf("delete: %+v, %v; wait said %+v", deleted, err, e)
	}
}

// TestRecoverySurvivesACrashAtEveryStep ends the daemon in the middle of a
// life, for each kind of middle, and the next one at every step of its
// recovery.
func TestRecoverySurvivesACrashAtEveryStep(t *testing.T) {
	for _, middle := range []struct {
		name string
		nth  int
	}{
		{"write config.json", 1},
		{"start", 1},
		{"replace bootstrap.json", 1},
		{"shim create", 1},
		{"replace task.json", 3}, // created
		{"replace task.json", 4}, // deleting
		{"shim delete", 1},
		{"rename", 1},
	} {
		t.Run(fmt.Sprintf("%s %d", middle.name, middle.nth), func(t *testing.T) {
			at := stepOf(t, middle.name, middle.nth)
			cuts(t, func(t *testing.T, c *cut) {
				p := newPlace(t)
				first := p.openWhole(t, &cut{at: at, after: true})
				first.container(t, "c1", "sleep")
				told, _ := first.live(t.Context(), "c1")
				first.close(t)

				if second, err := p.tryOpen(t, c); err == nil {
					second.settle()
					second.close(t)
				} else if !errors.Is(err, errCut) {
					t.Fatalf("open: %v", err)
				}
				p.judge(t, p.open(t, &cut{}), "c1", told)
			})
		})
	}
}

// settle returns when the daemon has recovered what it found, or is cut.
func (o *opened) settle() {
	settled := func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, l := range o.tasks {
			if v := l.look(); v.phase == beginning || v.phase == seeking || v.rec.State == deleting {
				return false
			}
		}
		return true
	}
	for end := time.Now().Add(5 * time.Second); o.cut.ended() == nil && !settled() && time.Now().Before(end); {
		<-time.After(time.Millisecond)
	}
}

// stepOf returns which step of a life is the nth of its name.
func stepOf(t *testing.T, name string, nth int) int {
	p := newPlace(t)
	c := &cut{}
	o := p.openWhole(t, c)
	o.container(t, "c1", "sleep")
	if _, err := o.live(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, step := range c.trail {
		if step == name {
			if nth--; nth == 0 {
				return i + 1
			}
		}
	}
	t.Fatalf("no step %q among %q", name, c.trail)
	return 0
}

// TestDeadShimSurvivesACrashAtEveryStep ends the shim, and then the daemon at
// every step of cleaning up. The exit is told once, and can be waited for.
func TestDeadShimSurvivesACrashAtEveryStep(t *testing.T) {
	cuts(t, func(t *testing.T, c *cut) {
		p := newPlace(t)
		first := p.openWhole(t, c)
		first.container(t, "c1", "sleep")
		at := c.at
		c.restart(0)
		first.start(t, "c1")
		c.restart(at)
		b, err := first.bundle("one", "c1")
		if err != nil {
			t.Fatal(err)
		}
		p.w.shim(b.dir).Die()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		first.tasksOne().Wait(ctx, "c1", "")
		first.close(t)

		second := p.open(t, &cut{})
		patient, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		e, err := second.tasksOne().Wait(patient, "c1", "")
		if err != nil || e.Status != 137 {
			t.Fatalf("Wait: %+v, %v", e, err)
		}
		if got := second.status(t, "c1"); got != task.Stopped {
			t.Errorf("status %s, want stopped", got)
		}
		deleted, err := second.tasksOne().Delete(patient, "c1")
		if err != nil || deleted != e {
			t.Errorf("Delete: %+v, %v; want %+v", deleted, err, e)
		}
		p.empty(t)
		second.container(t, "last", "true") // whose event comes after all others
		eventually(t, "everything is told", func() error {
			if len(second.events.told("/containers/create")) == 0 {
				return errors.New("not yet")
			}
			return nil
		})
		for _, topic := range []string{"/tasks/exit", "/tasks/delete"} {
			ids := append(first.events.told(topic), second.events.told(topic)...)
			slices.Sort(ids)
			if ids = slices.Compact(ids); len(ids) != 1 {
				t.Errorf("%s was told as %q, want once", topic, ids)
			}
		}
	})
}
