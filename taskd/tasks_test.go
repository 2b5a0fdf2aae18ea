package taskd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/runner"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/task/tasktest"
	"github.com/gantryd/gantry/services/typed"
)

func execSpec(args ...string) typed.Value { return tasktest.Process(args...) }

func TestBundleIsWhatShimsExpect(t *testing.T) {
	p := newPlace(t)
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	o := p.open(t, &cut{})
	spec := typed.Value{URL: "x", Data: []byte("{\"process\" :\n{\"args\":[\"sleep\"]}, \"odd\":\t1}")}
	_, err := o.Containers().In(one).Create(t.Context(), container.Container{
		ID: "c1", Runtime: container.Runtime{Name: tasktest.MemoryRuntime}, Spec: &spec,
	})
	if err != nil {
		t.Fatal(err)
	}
	o.start(t, "c1")
	dir := p.bundleOf("c1")
	for name, want := range map[string]fs.FileMode{
		p.cfg.Root:                           fs.ModeDir | 0o700,
		p.cfg.State:                          fs.ModeDir | 0o711,
		filepath.Dir(filepath.Dir(dir)):      fs.ModeDir | 0o711,
		filepath.Dir(dir):                    fs.ModeDir | 0o711,
		dir:                                  fs.ModeDir | 0o700,
		filepath.Join(dir, "rootfs"):         fs.ModeDir | 0o711,
		filepath.Join(dir, "work"):           fs.ModeSymlink | 0o777,
		filepath.Join(dir, "log"):            fs.ModeNamedPipe | 0o600,
		filepath.Join(dir, "config.json"):    0o600,
		filepath.Join(dir, "bootstrap.json"): 0o600,
	} {
		st, err := os.Lstat(name)
		if err != nil {
			t.Error(err)
		} else if st.Mode() != want {
			t.Errorf("%s: mode %v, want %v", name, st.Mode(), want)
		}
	}
	for name, want := range map[string]string{
		"config.json":      string(spec.Data),
		"shim-binary-path": "/fake/" + OwnShim,
		"bootstrap.json":   `{"version":3,"address":"unix://` + dir + `","protocol":"ttrpc"}`,
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	work, err := os.Readlink(filepath.Join(dir, "work"))
	if err != nil || work != filepath.Join(p.cfg.Root, bundlesName, "one", "c1") {
		t.Errorf("work: %s, %v", work, err)
	}
	if _, err := os.Stat(work); err != nil {
		t.Error(err)
	}
}

func TestDirectoriesThatAreTooWideAreTightened(t *testing.T) {
	p := newPlace(t)
	for _, dir := range []string{p.cfg.Root, p.cfg.State, filepath.Join(p.cfg.State, bundlesName, "one")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	p.open(t, &cut{}).run(t, "c1", "sleep")
	for dir, want := range map[string]fs.FileMode{
		p.cfg.Root:  0o700,
		p.cfg.State: 0o711,
		filepath.Join(p.cfg.State, bundlesName, "one"): 0o711,
	} {
		if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", dir, st.Mode().Perm(), err, want)
		}
	}
}

func TestRootOfAUserNamespacePassesThroughItsBundle(t *testing.T) {
	for spec, want := range map[string]struct {
		gid    int
		mapped bool
		bad    bool
	}{
		`{}`:                           {},
		`{"linux":{"gidMappings":[]}}`: {},
		`{"linux":{"gidMappings":[{"containerID":0,"hostID":5000,"size":10}]}}`:                                          {gid: 5000, mapped: true},
		`{"linux":{"gidMappings":[{"containerID":1,"hostID":6000,"size":10},{"containerID":0,"hostID":5000,"size":1}]}}`: {gid: 5000, mapped: true},
		`{"linux":{"gidMappings":[{"containerID":0,"hostID":4294967296,"size":1}]}}`:                                     {bad: true},
		`{"linux":{"gidMappings":[{"containerID":0,"hostID":-1,"size":1}]}}`:                                             {bad: true},
		`gidMappings`: {bad: true},
	} {
		gid, mapped, err := rootGroup([]byte(spec))
		if want.bad {
			wantKind(t, spec, err, errdefs.ErrInvalidArgument)
			continue
		}
		if gid != want.gid || mapped != want.mapped || err != nil {
			t.Errorf("%s: %d, %t, %v", spec, gid, mapped, err)
		}
	}
}

func TestCreateThatFailsLeavesNothing(t *testing.T) {
	fail := func(p place, err error) { p.w.mu.Lock(); p.w.startErr = err; p.w.mu.Unlock() }
	for _, runtime := range []string{"io.containerd.runc.v2", "io.containerd.other.v2"} {
		t.Run(runtime, func(t *testing.T) {
			p := newPlace(t)
			o := p.open(t, &cut{})
			s := o.tasksOne()

			o.containerOf(t, "c1", runtime, "sleep")
			fail(p, errors.New("no shim today"))
			if _, err := s.Create(t.Context(), task.CreateRequest{ContainerID: "c1"}); err == nil || !strings.Contains(err.Error(), "no shim today") {
				t.Errorf("Create without a shim: %v", err)
			}
			p.empty(t)
			fail(p, nil)

			spec := typed.Value{Data: []byte("not JSON")}
			if _, err := o.Containers().In(one).Create(t.Context(), container.Container{ID: "bad", Runtime: container.Runtime{Name: runtime}, Spec: &spec}); err != nil {
				t.Fatal(err)
			}
			_, err := s.Create(t.Context(), task.CreateRequest{ContainerID: "bad"})
			wantKind(t, "Create of a bad spec", err, errdefs.ErrInvalidArgument)
			p.empty(t)

			if _, err := s.Create(t.Context(), task.CreateRequest{ContainerID: "c1"}); err != nil {
				t.Errorf("Create afterwards: %v", err)
			}
		})
	}
}

func TestCallerWhoLeavesCreateLeavesNothing(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.container(t, "c1", "sleep")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := o.tasksOne().Create(ctx, task.CreateRequest{ContainerID: "c1", IO: task.IO{}})
		done <- err
	}()
	// As soon as there is a shim, it is silent and the caller leaves.
	eventually(t, "there is a shim", func() error {
		if p.w.shim(p.bundleOf("c1")) == nil {
			return errors.New("not yet")
		}
		return nil
	})
	cancel()
	<-done // either of the two may have been first
	o.tasksOne().Kill(t.Context(), "c1", "", sigkill, false)
	o.tasksOne().Delete(t.Context(), "c1")
	p.empty(t)
	o.start(t, "c1")
}

func TestCallerWhoLeavesDeleteFindsItDone(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.run(t, "c1", "exit", "4")
	s := o.tasksOne()
	if _, err := s.Wait(t.Context(), "c1", ""); err != nil {
		t.Fatal(err)
	}
	shim := p.w.shim(p.bundleOf("c1"))
	shim.Mute()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := s.Delete(ctx, "c1")
	wantKind(t, "Delete of a shim that is silent", err, context.DeadlineExceeded)
	shim.Unmute()
	p.empty(t) // without the caller
	if e, err := s.Delete(t.Context(), "c1"); err != nil || e.Status != 4 {
		t.Errorf("Delete again: %+v, %v", e, err)
	}
	_, err = s.Delete(t.Context(), "c1")
	wantKind(t, "Delete once more", err, errdefs.ErrNotFound)
}

func TestDeletesAtTheSameTimeAreOne(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.run(t, "c1", "exit", "4")
	s := o.tasksOne()
	if _, err := s.Wait(t.Context(), "c1", ""); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if e, err := s.Delete(t.Context(), "c1"); err == nil && e.Status != 4 || err != nil && !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("Delete: %+v, %v", e, err)
			}
		})
	}
	wg.Wait()
	p.empty(t)
}

func TestOtherShimsAreLeftWithTheirDeleteCommand(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.containerOf(t, "c1", "io.containerd.other.v2", "exit", "6")
	o.start(t, "c1")
	s := o.tasksOne()
	if e, err := s.Wait(t.Context(), "c1", ""); err != nil || e.Status != 6 {
		t.Fatalf("Wait: %+v, %v", e, err)
	}
	if e, err := s.Delete(t.Context(), "c1"); err != nil || e.Status != 6 {
		t.Fatalf("Delete: %+v, %v", e, err)
	}
	if p.w.cleaned != 1 {
		t.Errorf("the delete command was run %d times, want once", p.w.cleaned)
	}
	p.empty(t)
	o.run(t, "c2", "exit", "6")
	s.Wait(t.Context(), "c2", "")
	if _, err := s.Delete(t.Context(), "c2"); err != nil {
		t.Fatal(err)
	}
	p.empty(t)
	if p.w.cleaned != 1 {
		t.Errorf("a delete command was run for our own shim, which needs none")
	}
}

func TestHoldingsAreTheNamespacesWithContainers(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	for _, ns := range []string{"b", "a", "a-b", "a.b"} {
		for _, id := range []string{"c1", "c2"} {
			spec := tasktest.Spec("true")
			_, err := o.Containers().In(namespace.Scope{Name: ns}).Create(t.Context(), container.Container{
				ID: id, Runtime: container.Runtime{Name: "r.v1"}, Spec: &spec,
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	var got []string
	all, err := o.Holdings(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		got = append(got, h.Namespace+" "+h.Kind)
	}
	want := "a containers, a-b containers, a.b containers, b containers"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("Holdings: %s; want %s", s, want)
	}
}

func TestEventsOfContainersAreToldInOrder(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.container(t, "c1", "true")
	s := o.Containers().In(one)
	if _, err := s.Update(t.Context(), container.Container{ID: "c1", Labels: map[string]string{"a": "b"}}, "labels.a"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Update(t.Context(), container.Container{ID: "c1"}, "nonsense"); err == nil {
		t.Fatal("Update of nonsense: no error")
	}
	if err := s.Delete(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "they are told", func() error {
		o.events.mu.Lock()
		defer o.events.mu.Unlock()
		var got []string
		for _, e := range o.events.got {
			got = append(got, fmt.Sprintf("%s %s %s", e.Topic, e.Subject, e.JSON))
		}
		want := `/containers/create c1 {"id":"c1","runtime":{"name":"io.containerd.runc.v2"}}` +
			` /containers/update c1 {"id":"c1","labels":{"a":"b"}}` +
			` /containers/delete c1 {"id":"c1"}`
		if s := strings.Join(got, " "); s != want {
			return fmt.Errorf("%s; want %s", s, want)
		}
		return nil
	})
}

// TestTasksUnderChurn has many clients live tasks at once, with shims that die
// at any moment and restarts in between: nothing is left and nothing is stuck.
func TestTasksUnderChurn(t *testing.T) {
	p := newPlace(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	o := p.open(t, &cut{})
	const clients = 8
	for i := range clients {
		o.container(t, fmt.Sprintf("c%d", i), "sleep")
	}
	for range 4 {
		var wg sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		for i := range clients {
			mine := rand.New(rand.NewPCG(r.Uint64(), uint64(i)))
			wg.Go(func() { churn(ctx, p, o, fmt.Sprintf("c%d", i), mine) })
		}
		wg.Wait()
		cancel()
		o = p.restart(t, o)
	}
	s := o.tasksOne()
	for i := range clients {
		id := fmt.Sprintf("c%d", i)
		eventually(t, id+" can be ended", func() error {
			s.Kill(t.Context(), id, "", sigkill, false)
			if _, err := s.Delete(t.Context(), id); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
				return err
			}
			return nil
		})
	}
	p.empty(t)
}

func churn(ctx context.Context, p place, o *opened, id string, r *rand.Rand) {
	s := o.tasksOne()
	for ctx.Err() == nil {
		s.Create(ctx, task.CreateRequest{ContainerID: id})
		if r.IntN(4) > 0 {
			s.Start(ctx, id, "")
		}
		switch r.IntN(6) {
		case 0:
			if shim := p.w.shim(p.bundleOf(id)); shim != nil {
				shim.Die()
			}
		case 1:
			short, cancel := context.WithTimeout(ctx, time.Millisecond)
			s.Delete(short, id)
			cancel()
		case 2:
			s.List(ctx)
		}
		s.Kill(ctx, id, "", sigkill, false)
		s.Wait(ctx, id, "")
		s.Delete(ctx, id)
	}
}

// TestEventsThatAShimLeftAreTold holds that what a shim had no time to tell is
// told for it, and before whatever is told next of the container.
func TestEventsThatAShimLeftAreTold(t *testing.T) {
	p := newPlace(t)
	p.told = func(ns string, e runner.Event) (event.Event, error) {
		return event.Event{ID: "shim/" + e.ContainerID + string(e.Topic), Namespace: ns, Topic: string(e.Topic), Time: e.Time, Subject: e.ContainerID}, nil
	}
	o := p.open(t, &cut{})
	leave := func(id string) {
		t.Helper()
		left := `{"topic":"/tasks/exit","time":"2026-01-01T00:00:00Z","container_id":"` + id + `"}` + "\nnot JSON\n" +
			`{"topic":"/tasks/delete","time":"2026-01-01T00:00:01Z","container_id":"` + id + `"}` + "\n{cut off"
		if err := os.WriteFile(filepath.Join(p.bundleOf(id), eventsFile), []byte(left), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o.run(t, "c1", "true")
	o.run(t, "dies", "sleep")
	leave("c1")
	leave("dies")
	o.tasksOne().Wait(t.Context(), "c1", "")
	if _, err := o.tasksOne().Delete(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if err := o.Containers().In(one).Delete(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	p.w.shim(p.bundleOf("dies")).Die()
	if _, err := o.tasksOne().Wait(t.Context(), "dies", ""); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{
		"c1":   "taskd/containers/create shim/tasks/exit shim/tasks/delete taskd/containers/delete",
		"dies": "taskd/containers/create shim/tasks/exit shim/tasks/delete taskd/tasks/exit taskd/tasks/delete",
	} {
		eventually(t, "they are told", func() error {
			o.events.mu.Lock()
			defer o.events.mu.Unlock()
			var got []string
			for _, e := range o.events.got {
				teller, _, _ := strings.Cut(e.ID, "/")
				if e.About() == id && !slices.Contains(got, teller+e.Topic) {
					got = append(got, teller+e.Topic)
				}
			}
			if s := strings.Join(got, " "); s != want {
				return fmt.Errorf("%s: %s; want %s", id, s, want)
			}
			return nil
		})
	}
}

// TestAShimWaitsForWhatWasBefore holds that a shim tells nothing of a task while
// its container has not been told of, also after a restart.
func TestAShimWaitsForWhatWasBefore(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.events.refuse(true)
	o.run(t, "c1", "sleep")
	hold := filepath.Join(p.bundleOf("c1"), holdFile)
	if _, err := os.Lstat(hold); err != nil {
		t.Errorf("the shim is not held: %v", err)
	}
	o = p.restart(t, o)
	eventually(t, "the shim is released", func() error {
		if _, err := os.Lstat(hold); err == nil {
			return errors.New("it is held")
		}
		return nil
	})
	if told := o.events.told("/containers/create"); len(told) != 1 {
		t.Errorf("before it were told %v", told)
	}
	o.run(t, "c2", "sleep")
	for _, id := range []string{"c1", "c2"} {
		o.tasksOne().Kill(t.Context(), id, "", sigkill, false)
		o.tasksOne().Wait(t.Context(), id, "")
		if _, err := o.tasksOne().Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}
