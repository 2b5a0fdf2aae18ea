package taskd

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/task"
)

// cutMounts are activations until the cut.
type cutMounts struct {
	activation.Stores
	cut *cut
}

func (m cutMounts) In(scope namespace.Scope) activation.Store {
	return cutMountsIn{m.Stores.In(scope), m.cut}
}

type cutMountsIn struct {
	activation.Store
	cut *cut
}

func (m cutMountsIn) Activate(ctx context.Context, name string, mounts []mount.Mount, o activation.Options) (i activation.Info, err error) {
	err = m.cut.step("activate", func() error { i, err = m.Store.Activate(ctx, name, mounts, o); return err })
	return i, err
}

func (m cutMountsIn) Deactivate(ctx context.Context, name string) error {
	return m.cut.step("deactivate", func() error { return m.Store.Deactivate(ctx, name) })
}

// images is a root file system of an image and a directory that is written to.
func (p place) images(t *testing.T) []mount.Mount {
	t.Helper()
	f := p.mounts.Fixture()
	return []mount.Mount{
		{Type: "erofs", Source: f.Image(t, one.Name), Options: []string{"ro"}},
		{Type: "format/overlay", Source: "overlay", Options: []string{
			"upperdir=" + f.Active(t, one.Name) + "/fs", "workdir=" + f.Active(t, one.Name) + "/work", "lowerdir={{ mount 0 }}",
		}},
	}
}

// TestMountsAreMadeForATask has a task whose root file system its shim cannot
// mount by itself.
func TestMountsAreMadeForATask(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.container(t, "c1", "sleep")
	s := o.tasksOne()
	if _, err := s.Create(t.Context(), task.CreateRequest{ContainerID: "c1", Rootfs: p.images(t)}); err != nil {
		t.Fatal(err)
	}
	n := 0
	for i, err := range p.mounts.In(one).List(t.Context()) {
		if n++; err != nil || !strings.HasPrefix(i.Name, "task-c1-") || i.Labels[labelContainer] != "c1" {
			t.Errorf("activation %+v, %v", i, err)
		}
	}
	if n != 1 {
		t.Errorf("%d activations, want one", n)
	}
	if _, err := s.Start(t.Context(), "c1", ""); err != nil {
		t.Fatal(err)
	}
	finish(t, t.Context(), o, "c1")
	p.empty(t)
}

// TestATaskOfForeignMountsIsNotCreated describes another namespace's snapshot.
func TestATaskOfForeignMountsIsNotCreated(t *testing.T) {
	p := newPlace(t)
	o := p.open(t, &cut{})
	o.container(t, "c1", "sleep")
	_, err := o.tasksOne().Create(t.Context(), task.CreateRequest{ContainerID: "c1", Rootfs: []mount.Mount{
		{Type: "erofs", Source: p.mounts.Fixture().Image(t, "other")}, {Type: "format/bind", Source: "{{ mount 0 }}"},
	}})
	wantKind(t, "Create", err, errdefs.ErrInvalidArgument)
	p.empty(t)
}

// TestMountsOfATaskSurviveACrashAtEveryStep ends the daemon at every step of the
// life of such a task. No mount outlives it in the end.
func TestMountsOfATaskSurviveACrashAtEveryStep(t *testing.T) {
	cuts(t, func(t *testing.T, c *cut) {
		p := newPlace(t)
		first := p.openWhole(t, c)
		first.container(t, "c1", "sleep")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		told, err := first.live(ctx, "c1", p.images(t)...)
		if err != nil && !errors.Is(err, errCut) && c.ended() == nil {
			t.Errorf("its life: %v", err)
		}
		first.close(t)
		p.judge(t, p.open(t, &cut{}), "c1", told)
	})
}
