package taskd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/task"
)

// restart ends a daemon, as kill -9 would, and opens the next.
func (p place) restart(t *testing.T, o *opened) *opened {
	t.Helper()
	o.close(t)
	return p.open(t, &cut{})
}

func (p place) bundleOf(id string) string {
	return filepath.Join(p.cfg.State, bundlesName, "one", id)
}

func wantKind(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: got error %v, want %v", what, err, kind)
	}
}

func TestTaskOutlivesTheDaemon(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.run(t, "runs", "sleep")
	o.run(t, "ends", "sleep")
	o.container(t, "waits", "sleep")
	if _, err := o.tasksOne().Create(t.Context(), task.CreateRequest{ContainerID: "waits"}); err != nil {
		t.Fatal(err)
	}
	before, err := o.tasksOne().Get(t.Context(), "runs", "")
	if err != nil {
		t.Fatal(err)
	}
	o.close(t)
	shim, err := p.w.shim(p.bundleOf("ends")).Connect()
	if err != nil {
		t.Fatal(err)
	}
	if err := shim.Kill(t.Context(), "ends", "", sigkill, false); err != nil {
		t.Fatal(err)
	}
	shim.Wait(t.Context(), "ends", "")

	o = p.open(t, &cut{})
	s := o.tasksOne()
	after, err := s.Get(t.Context(), "runs", "")
	if err != nil || after != before {
		t.Errorf("the running task was %+v and is %+v, %v", before, after, err)
	}
	if e, err := s.Wait(t.Context(), "ends", ""); err != nil || e.Status != 137 {
		t.Errorf("the task that ended meanwhile: %+v, %v", e, err)
	}
	if _, err := s.Start(t.Context(), "waits", ""); err != nil {
		t.Errorf("the task that had not started: %v", err)
	}
	all, err := s.List(t.Context())
	if err != nil || len(all) != 3 {
		t.Errorf("List: %+v, %v; want 3 tasks", all, err)
	}
	if _, err := s.Create(t.Context(), task.CreateRequest{ContainerID: "runs"}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("Create of a task that runs: %v", err)
	}
	if p.w.cleaned > 0 {
		t.Errorf("%d delete commands were run", p.w.cleaned)
	}
}

func TestWaitersOfADeadShimAreTold(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.run(t, "c1", "sleep")
	o.run(t, "other", "sleep")
	s := o.tasksOne()
	if err := s.Exec(t.Context(), task.ExecRequest{ContainerID: "c1", ExecID: "e", Spec: execSpec("sleep")}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Start(t.Context(), "c1", "e"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, exec := range []string{"", "", "e"} {
		wg.Go(func() {
			if e, err := s.Wait(t.Context(), "c1", exec); err != nil || e.Status != 137 {
				t.Errorf("Wait(%q): %+v, %v", exec, e, err)
			}
		})
	}
	p.w.shim(p.bundleOf("c1")).Die()
	wg.Wait()

	if got := o.status(t, "c1"); got != task.Stopped {
		t.Errorf("status %s, want stopped", got)
	}
	if got := o.status(t, "other"); got != task.Running {
		t.Errorf("the other task is %s", got)
	}
	wantKind(t, "Kill", s.Kill(t.Context(), "c1", "", sigkill, false), errdefs.ErrNotFound)
	wantKind(t, "Exec", s.Exec(t.Context(), task.ExecRequest{ContainerID: "c1", ExecID: "f", Spec: execSpec("true")}), errdefs.ErrFailedPrecondition)
	eventually(t, "the end is told", func() error {
		if len(o.events.told("/tasks/exit")) != 1 || len(o.events.told("/tasks/delete")) != 1 {
			return errors.New("not yet")
		}
		return nil
	})

	o = p.restart(t, o)
	s = o.tasksOne()
	if e, err := s.Wait(t.Context(), "c1", ""); err != nil || e.Status != 137 {
		t.Errorf("Wait after a restart: %+v, %v", e, err)
	}
	// It is no obstacle to the next.
	o.start(t, "c1")
	if got := o.status(t, "c1"); got != task.Running {
		t.Errorf("status %s, want running", got)
	}
	o = p.restart(t, o)
	if got := o.status(t, "c1"); got != task.Running {
		t.Errorf("status after another restart %s, want running", got)
	}
}

func TestDeadTaskGoesWithItsContainer(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.run(t, "c1", "sleep")
	p.w.shim(p.bundleOf("c1")).Die()
	if _, err := o.tasksOne().Wait(t.Context(), "c1", ""); err != nil {
		t.Fatal(err)
	}
	if err := o.Containers().In(one).Delete(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	o.container(t, "c1", "sleep")
	_, err := o.tasksOne().Get(t.Context(), "c1", "")
	wantKind(t, "Get", err, errdefs.ErrNotFound)
	o = p.restart(t, o)
	_, err = o.tasksOne().Get(t.Context(), "c1", "")
	wantKind(t, "Get after a restart", err, errdefs.ErrNotFound)
	p.empty(t)
}

func TestDeleteOfADeadTask(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.run(t, "c1", "sleep")
	p.w.shim(p.bundleOf("c1")).Die()
	// While its shim is being found dead, or after: the same.
	if e, err := o.tasksOne().Delete(t.Context(), "c1"); err != nil || e.Status != 137 {
		t.Errorf("Delete: %+v, %v", e, err)
	}
	_, err := o.tasksOne().Get(t.Context(), "c1", "")
	wantKind(t, "Get", err, errdefs.ErrNotFound)
	p.empty(t)
}

func TestShimThatDiedWhileTheDaemonWasAway(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.run(t, "c1", "sleep")
	o.close(t)
	p.w.shim(p.bundleOf("c1")).Die()
	o = p.open(t, &cut{})
	if e, err := o.tasksOne().Wait(t.Context(), "c1", ""); err != nil || e.Status != 137 {
		t.Errorf("Wait: %+v, %v", e, err)
	}
	eventually(t, "the end is told", func() error {
		if len(o.events.told("/tasks/exit")) != 1 {
			return errors.New("not yet")
		}
		return nil
	})
	if _, processes := p.w.living(); processes != 0 {
		t.Errorf("%d processes live on", processes)
	}
}

func TestUnknownEndIsSaidSo(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.run(t, "c1", "sleep")
	p.w.mu.Lock()
	p.w.failing = "clean"
	p.w.mu.Unlock()
	p.w.shim(p.bundleOf("c1")).Die()
	e, err := o.tasksOne().Wait(t.Context(), "c1", "")
	if err != nil || e.Status != statusUnknown || e.At.IsZero() || e.Pid == 0 {
		t.Errorf("Wait: %+v, %v; want status %d", e, err, statusUnknown)
	}
	if p.w.cleaned != cleanTries {
		t.Errorf("the delete command was tried %d times, want %d", p.w.cleaned, cleanTries)
	}
}

// A shim that does not answer holds up nobody but its own task, is not taken
// for dead, and is found again.
func TestMuteShimIsKept(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.run(t, "mute", "sleep")
	o.run(t, "well", "sleep")
	shim := p.w.shim(p.bundleOf("mute"))
	shim.Mute()
	o.close(t)

	start := time.Now()
	o = p.open(t, &cut{})
	s := o.tasksOne()
	if got := o.status(t, "well"); got != task.Running {
		t.Errorf("the other task is %s", got)
	}
	if took := time.Since(start); took > seekTime/2 {
		t.Errorf("the daemon and its other task took %v", took)
	}
	all, err := s.List(t.Context())
	if err != nil || len(all) != 2 || all[0].Status != task.Unknown || all[0].Pid == 0 || all[1].Status != task.Running {
		t.Errorf("List: %+v, %v; want one unknown and one running", all, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	wantKind(t, "Kill", s.Kill(ctx, "mute", "", sigkill, false), errdefs.ErrUnavailable)
	_, err = s.Delete(ctx, "mute")
	wantKind(t, "Delete", err, errdefs.ErrUnavailable)
	_, err = s.Create(ctx, task.CreateRequest{ContainerID: "mute"})
	wantKind(t, "Create", err, errdefs.ErrAlreadyExists)
	waited := make(chan task.Exit, 1)
	go func() {
		e, _ := s.Wait(ctx, "mute", "")
		waited <- e
	}()
	if _, processes := p.w.living(); processes != 2 || p.w.cleaned > 0 {
		t.Errorf("%d processes, %d delete commands", processes, p.w.cleaned)
	}
	shim.Unmute()
	eventually(t, "the shim is found again", func() error {
		if got := o.status(t, "mute"); got != task.Running {
			return errors.New(string(got))
		}
		return nil
	})
	if err := s.Kill(ctx, "mute", "", sigkill, false); err != nil {
		t.Errorf("Kill: %v", err)
	}
	if e := <-waited; e.Status != 137 {
		t.Errorf("Wait, from before: %+v", e)
	}
}

func TestStateOfAShimThatFallsSilentIsUnknown(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.run(t, "c1", "sleep")
	shim := p.w.shim(p.bundleOf("c1"))
	shim.Mute()
	defer shim.Unmute()
	start := time.Now()
	if got := o.status(t, "c1"); got != task.Unknown {
		t.Errorf("status %s, want unknown", got)
	}
	if took := time.Since(start); took > 2*stateTime {
		t.Errorf("it took %v", took)
	}
	if all, err := o.tasksOne().Metrics(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("Metrics: %+v, %v; want none", all, err)
	}
}

func TestDamagedRecordIsLeftAlone(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.run(t, "c1", "sleep")
	o.run(t, "c2", "sleep")
	o.close(t)
	record := filepath.Join(p.bundleOf("c1"), taskFile)
	was, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, was[:len(was)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	o = p.open(t, &cut{})
	if got := o.status(t, "c2"); got != task.Running {
		t.Errorf("the other task is %s", got)
	}
	_, err = o.tasksOne().Create(t.Context(), task.CreateRequest{ContainerID: "c1"})
	wantKind(t, "Create over it", err, errdefs.ErrAlreadyExists)
	if _, processes := p.w.living(); processes != 2 {
		t.Errorf("%d processes, want 2", processes)
	}
	o.close(t)
	if err := os.WriteFile(record, was, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := p.open(t, &cut{}).status(t, "c1"); got != task.Running {
		t.Errorf("the task of the mended record is %s", got)
	}
}

func TestBundlesOfAnotherBootAreRemovedUnseen(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.run(t, "c1", "sleep")
	o.run(t, "dead", "sleep")
	p.w.shim(p.bundleOf("dead")).Die()
	if _, err := o.tasksOne().Wait(t.Context(), "dead", ""); err != nil {
		t.Fatal(err)
	}
	o.close(t)
	if err := os.WriteFile(filepath.Join(p.cfg.State, "boot"), []byte("another\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.w.shim(p.bundleOf("c1")).Clean() // as a boot does
	o = p.open(t, &cut{})
	all, err := o.tasksOne().List(t.Context())
	if err != nil || len(all) != 1 {
		// The death is recorded for this boot, which the machine has not left.
		t.Errorf("List: %+v, %v", all, err)
	}
	_, err = o.tasksOne().Get(t.Context(), "c1", "")
	wantKind(t, "Get", err, errdefs.ErrNotFound)
	o.start(t, "c1")
}

func TestStrangeDirectoriesAmongTheBundlesAreLeftAlone(t *testing.T) {
	p := newPlace(t)
	p.open(t, &cut{}).close(t)
	strange := filepath.Join(p.cfg.State, bundlesName, "one", "not an id")
	trash := filepath.Join(p.cfg.State, bundlesName, "one", ".c1-0123")
	unborn := filepath.Join(p.cfg.State, bundlesName, "one", "c1")
	for _, dir := range []string{strange, trash, unborn} {
		if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	o := p.open(t, &cut{})
	if _, err := os.Stat(strange); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{trash, unborn} {
		eventually(t, dir+" is removed", func() error {
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("stat: %v", err)
			}
			return nil
		})
	}
	o.run(t, "c1", "sleep")
}

func TestInterruptEndsWaits(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.run(t, "c1", "sleep")
	waited := make(chan error, 1)
	go func() {
		_, err := o.tasksOne().Wait(t.Context(), "c1", "")
		waited <- err
	}()
	eventually(t, "it waits", func() error {
		l, err := o.find(t.Context(), "one", "c1")
		if err != nil {
			return err
		}
		l.waits.mu.Lock()
		defer l.waits.mu.Unlock()
		if len(l.waits.all) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	o.Interrupt()
	wantKind(t, "Wait", <-waited, errdefs.ErrUnavailable)
	if got := o.status(t, "c1"); got != task.Running {
		t.Errorf("status %s, want running", got)
	}
	_, err := o.tasksOne().Wait(t.Context(), "c1", "")
	wantKind(t, "Wait after it", err, errdefs.ErrUnavailable)
}

func TestErrorsOfRuntimesAreOneLine(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.containerOf(t, "c1", "io.containerd.nothere.v7", "true")
	_, err := o.tasksOne().Create(t.Context(), task.CreateRequest{ContainerID: "c1"})
	want := `runtime "io.containerd.nothere.v7" binary not installed "containerd-shim-nothere-v7": file does not exist`
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("Create: %v; want %s", err, want)
	}
}
