package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// resumeWithin is how soon after a daemon is back the suite works as before.
const resumeWithin = 2 * time.Second

// TestKillEachDaemon kills every daemon in turn, twice, while containers are
// run and records are written. No running container dies, no acknowledged write
// is lost, and the loop goes on by itself.
func TestKillEachDaemon(t *testing.T) {
	s := startSuite(t)
	image := s.importDemo()
	s.ctl("run", "-d", "--name", "witness", image, "/bin/sleep", "3600")
	witness := s.ctr("tasks", "ls")

	ctx, cancel := context.WithCancel(t.Context())
	var loops sync.WaitGroup
	defer loops.Wait()
	defer cancel()
	runs := &runLoop{}
	loops.Go(func() {
		for ctx.Err() == nil {
			start := time.Now()
			_, err := s.tryCtl("run", "--rm", image, "/bin/true")
			runs.add(start, time.Now(), err)
		}
	})
	w := newWriter(t, s.address)
	loops.Go(func() { w.run(ctx) })

	for round := range 2 {
		for _, daemon := range []string{"contentd", "snapshotd", "imaged", "taskd", "eventbus", "gatewayd"} {
			before := s.status()[daemon]
			if before.Pid == 0 {
				t.Fatalf("%s has no pid before it is killed", daemon)
			}
			if err := syscall.Kill(before.Pid, syscall.SIGKILL); err != nil {
				t.Fatalf("kill %s: %v", daemon, err)
			}
			s.eventually(10*time.Second, daemon+" is back", func() error {
				if now := s.status()[daemon]; now.Pid == 0 || now.Pid == before.Pid || now.Health != "serving" {
					return fmt.Errorf("status %+v", now)
				}
				return nil
			})
			back := time.Now()
			s.eventually(10*time.Second, "a container runs again", func() error { return runs.succeededSince(back) })
			if took := runs.firstSuccessAfter(back).Sub(back); took > resumeWithin {
				t.Errorf("round %d, %s: the loop went on only %v after the daemon was back; errors meanwhile: %v", round, daemon, took, runs.errorsSince(back))
			}
			if now := s.ctr("tasks", "ls"); !sameLine(witness, now, "witness") {
				t.Errorf("round %d, %s: the witness was\n%sand is\n%s", round, daemon, witness, now)
			}
		}
	}
	cancel()
	loops.Wait()
	t.Logf("%d runs, %d of them failed while a daemon was away; %d writes acknowledged", runs.count(), runs.failures(), len(w.acked))
	w.verify()
}

// TestTaskOutlivesTaskd kills taskd while a container runs. The container goes
// on, may end meanwhile, and its exit status is right afterwards.
func TestTaskOutlivesTaskd(t *testing.T) {
	s := startSuite(t)
	image := s.importDemo()
	c, err := containerd.New(s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := namespaces.WithNamespace(t.Context(), "default")

	for _, away := range []bool{false, true} {
		name := fmt.Sprintf("ends-%t", away)
		s.ctl("run", "-d", "--name", name, image, "/bin/sh", "-c", "sleep 1; exit 42")
		pid := s.status()["taskd"].Pid
		// Stopped, taskd is away until the container has ended.
		if away {
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			<-time.After(2 * time.Second)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.eventually(10*time.Second, "the exit status is told", func() error {
			container, err := c.LoadContainer(ctx, name)
			if err != nil {
				return err
			}
			task, err := container.Task(ctx, nil)
			if err != nil {
				return err
			}
			waitCtx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			exited, err := task.Wait(waitCtx)
			if err != nil {
				return err
			}
			status := <-exited
			if status.Error() != nil {
				return status.Error()
			}
			if code := status.ExitCode(); code != 42 {
				t.Errorf("away %t: exit status %d, want 42", away, code)
			}
			return nil
		})
	}
}

func sameLine(a, b, word string) bool {
	line := func(s string) string {
		for _, l := range bytes.Split([]byte(s), []byte("\n")) {
			if bytes.Contains(l, []byte(word)) {
				return string(l)
			}
		}
		return ""
	}
	return line(a) != "" && line(a) == line(b)
}

// A runLoop is what became of each run.
type runLoop struct {
	mu   sync.Mutex
	runs []oneRun // guarded by mu
}

type oneRun struct {
	start, end time.Time
	err        error
}

func (l *runLoop) add(start, end time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.runs = append(l.runs, oneRun{start, end, err})
}

func (l *runLoop) firstSuccessAfter(t time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.runs {
		if r.err == nil && r.end.After(t) {
			return r.end
		}
	}
	return time.Time{}
}

func (l *runLoop) succeededSince(t time.Time) error {
	if l.firstSuccessAfter(t).IsZero() {
		return errors.New("no run has ended well")
	}
	return nil
}

func (l *runLoop) errorsSince(t time.Time) (errs []error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.runs {
		if r.err != nil && r.end.After(t) {
			errs = append(errs, r.err)
		}
	}
	return errs
}

func (l *runLoop) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.runs)
}

func (l *runLoop) failures() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.runs {
		if r.err != nil {
			n++
		}
	}
	return n
}

// A writer writes a blob, an image and a lease after the other and remembers
// what was acknowledged.
type writer struct {
	t      *testing.T
	client *containerd.Client
	acked  []func(context.Context) error // each checks one acknowledged write
}

func newWriter(t *testing.T, address string) *writer {
	c, err := containerd.New(address, containerd.WithTimeout(10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &writer{t: t, client: c}
}

func (w *writer) run(ctx context.Context) {
	ctx = namespaces.WithNamespace(ctx, "writer")
	for i := 0; ctx.Err() == nil; i++ {
		b := fmt.Appendf(nil, "blob %d of %d", i, os.Getpid())
		desc := ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(b), Size: int64(len(b))}
		callCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
		if err := content.WriteBlob(callCtx, w.client.ContentStore(), desc.Digest.String(), bytes.NewReader(b), desc); err == nil {
			w.acked = append(w.acked, func(ctx context.Context) error {
				got, err := content.ReadBlob(ctx, w.client.ContentStore(), desc)
				if err == nil && !bytes.Equal(got, b) {
					err = fmt.Errorf("other bytes: %q", got)
				}
				return err
			})
		}
		name := fmt.Sprintf("image-%d", i)
		if _, err := w.client.ImageService().Create(callCtx, images.Image{Name: name, Target: desc}); err == nil {
			w.acked = append(w.acked, func(ctx context.Context) error {
				_, err := w.client.ImageService().Get(ctx, name)
				return err
			})
		}
		id := fmt.Sprintf("lease-%d", i)
		if l, err := w.client.LeasesService().Create(callCtx, leases.WithID(id)); err == nil {
			w.acked = append(w.acked, func(ctx context.Context) error {
				_, err := w.client.LeasesService().ListResources(ctx, l)
				return err
			})
		}
		cancel()
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (w *writer) verify() {
	ctx := namespaces.WithNamespace(w.t.Context(), "writer")
	if len(w.acked) == 0 {
		w.t.Error("no write was acknowledged")
	}
	// The old connection may be in its back-off still.
	if err := w.client.Reconnect(); err != nil {
		w.t.Fatal(err)
	}
	lost := 0
	for _, check := range w.acked {
		if err := check(ctx); err != nil {
			if lost++; lost <= 3 {
				w.t.Errorf("an acknowledged write is lost: %v", err)
			}
		}
	}
	if lost > 3 {
		w.t.Errorf("%d acknowledged writes are lost", lost)
	}
}
