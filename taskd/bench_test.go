package taskd

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/task/tasktest"
)

// BenchmarkLife takes tasks that run nothing from the creation of their
// container to its removal, and reports the median of each phase in
// microseconds. The baseline is what runc takes for the same: its create, start
// and delete.
func BenchmarkLife(b *testing.B) {
	r := newReal(b, build(b))
	n := r.node(r.open())
	phases := []string{"record", "create", "start", "wait", "delete", "forget"}
	took := make([][]time.Duration, len(phases))
	i := 0
	for b.Loop() {
		id := fmt.Sprintf("b%d", i)
		i++
		at := time.Now()
		for p, err := range lifePhases(b, n, id) {
			if err != nil {
				b.Fatalf("%s: %v", phases[p], err)
			}
			took[p] = append(took[p], time.Since(at))
			at = time.Now()
		}
	}
	for p, all := range took {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds()), phases[p]+"-us")
	}
}

// lifePhases yields after each phase of a life.
func lifePhases(b *testing.B, n tasktest.Node, id string) func(func(int, error) bool) {
	ctx := b.Context()
	s := n.Tasks.In(one)
	steps := []func() error{
		func() error {
			spec := n.Spec("true")
			_, err := n.Containers.In(one).Create(ctx, container.Container{
				ID: id, Runtime: container.Runtime{Name: tasktest.MemoryRuntime}, Spec: &spec,
			})
			return err
		},
		func() error { _, err := s.Create(ctx, task.CreateRequest{ContainerID: id}); return err },
		func() error { _, err := s.Start(ctx, id, ""); return err },
		func() error { _, err := s.Wait(ctx, id, ""); return err },
		func() error { _, err := s.Delete(ctx, id); return err },
		func() error { return n.Containers.In(one).Delete(ctx, id) },
	}
	return func(yield func(int, error) bool) {
		for i, step := range steps {
			if !yield(i, step()) {
				return
			}
		}
	}
}
