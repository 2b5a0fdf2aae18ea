package contentd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/gc/gctest"
)

// A forest is what a sweep finds: a tree that is kept, one that is dead, and an
// ingest that nobody needs.
type forest struct {
	kept, dead []digest.Digest // from the root
	shared     digest.Digest   // is dead here, and kept in two
}

// plant makes a forest, in trees whose every blob refers to the next.
func plant(t *testing.T, s *Store) forest {
	t.Helper()
	chain := func(name, root string) (all []digest.Digest) {
		labels := map[string]string{"a": "1"}
		for i := range 3 {
			d := put(t, s, one, fmt.Appendf(nil, "%s %d", name, i))
			if i == 2 && root != "" {
				labels[root] = "x"
			}
			_, err := s.In(one).Update(t.Context(), content.Info{Digest: d, Labels: labels})
			must(t, err)
			labels = map[string]string{"containerd.io/gc.ref.content.0": d.String()}
			all = append([]digest.Digest{d}, all...)
		}
		return all
	}
	f := forest{kept: chain("kept", gc.LabelRoot), dead: chain("dead", "")}
	f.shared = f.dead[1]
	put(t, s, two, []byte("dead 1"))
	_, err := s.In(two).Update(t.Context(), content.Info{Digest: f.shared, Labels: map[string]string{gc.LabelRoot: "x"}})
	must(t, err)
	start := s.now()
	s.now = func() time.Time { return start.Add(-1000 * time.Hour) }
	leaveIngest(t, s, one, "dead", body)
	s.now = func() time.Time { return time.Now().UTC() }
	return f
}

// backdate gives s a gate whose deadlines have passed for everybody else, so
// that no test waits for them.
func backdate(s *Store) (now func() gc.Instant) {
	now = func() gc.Instant { return gc.Now().Add(-time.Hour) }
	s.gate = gc.NewGate(now)
	s.db.Gate = s.gate
	return now
}

// collectForest runs a cycle with a Sweep for each of the dead, and collects.
func collectForest(ctx context.Context, s *Store) error {
	c := &gctest.Coordinator{Owners: []gc.Owner{s}, Now: backdate(s)}
	defer func() { _ = s.End(context.WithoutCancel(ctx), c.Epoch) }()
	if err := errors.Join(c.Begin(ctx), c.Mark(ctx), c.Freeze(ctx, gc.HoldMax)); err != nil {
		return err
	}
	for _, part := range c.Dead() {
		for _, n := range part.Nodes {
			if _, err := s.Sweep(ctx, c.Epoch, []gc.Node{n}); err != nil {
				return err
			}
		}
	}
	err := s.End(ctx, c.Epoch)
	s.sweep(ctx)
	return err
}

// TestSweepSurvivesPowerLoss cuts the power before each change of a cycle and of
// the collection after it. What is kept is whole then, what is dead is whole
// with all that it refers to, or gone, and the next cycle removes the rest.
func TestSweepSurvivesPowerLoss(t *testing.T) {
	for _, keepNames := range []bool{false, true} {
		t.Run(fmt.Sprintf("names kept %t", keepNames), func(t *testing.T) {
			t.Parallel()
			for cut := 1; sweepUntil(t, cut, keepNames); cut++ {
			}
		})
	}
}

func sweepUntil(t *testing.T, cut int, keepNames bool) (more bool) {
	t.Helper()
	cfg := testConfig(t)
	defer os.RemoveAll(cfg.Root)
	p := newPower(t, cfg.Root, 0, keepNames)
	s, err := p.open(cfg, Needs{})
	must(t, err)
	f := plant(t, s)
	p.cutAt = p.changes + cut
	told := collectForest(t.Context(), s)
	closeStore(t, s)
	when := fmt.Sprintf("cut %d (the coordinator was told %v)", cut, told)
	if p.left == nil {
		if told != nil {
			t.Fatalf("without a cut: %v", told)
		}
		return false
	}
	p.left.restore(t, cfg.Root)
	s, err = Open(cfg, Needs{})
	must(t, err)
	defer closeStore(t, s)
	checkForest(t, s, f, when)
	finishForest(t, s, f, when)
	return true
}

// TestEveryChangeOfASweepMayFail fails one and nothing else.
func TestEveryChangeOfASweepMayFail(t *testing.T) {
	t.Parallel()
	for at, more := 1, true; more; at++ {
		cfg := testConfig(t)
		p := newPower(t, cfg.Root, 0, false)
		s, err := p.open(cfg, Needs{})
		must(t, err)
		f := plant(t, s)
		p.failAt = p.changes + at
		when := fmt.Sprintf("change %d failed (the coordinator was told %v)", at, collectForest(t.Context(), s))
		more = p.changes >= p.failAt
		p.failAt = 0
		checkForest(t, s, f, when)
		finishForest(t, s, f, when)
		closeStore(t, s)
		os.RemoveAll(cfg.Root)
	}
}

// checkForest wants what is kept, and of what is dead nothing without what it
// refers to.
func checkForest(t *testing.T, s *Store, f forest, when string) {
	t.Helper()
	whole := map[digest.Digest]bool{}
	for _, d := range append(f.kept, f.dead...) {
		b, err := content.ReadAll(t.Context(), s.In(one), d, 1<<20)
		if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("%s: %s: %v", when, d, err)
		}
		whole[d] = err == nil && digest.FromBytes(b) == d
	}
	for i, d := range f.kept {
		if !whole[d] {
			t.Errorf("%s: kept %d is gone", when, i)
		}
	}
	for i, d := range f.dead[:len(f.dead)-1] {
		if whole[d] && !whole[f.dead[i+1]] {
			t.Errorf("%s: dead %d is there and lacks what it refers to", when, i)
		}
	}
	if _, err := content.ReadAll(t.Context(), s.In(two), f.shared, 1<<20); err != nil {
		t.Errorf("%s: what another namespace has is gone: %v", when, err)
	}
	if len(s.lost) > 0 {
		t.Errorf("%s: lost %v", when, s.lost)
	}
}

// finishForest collects again and wants only what is kept.
func finishForest(t *testing.T, s *Store, f forest, when string) {
	t.Helper()
	must(t, collectForest(t.Context(), s))
	checkForest(t, s, f, when+", collected again")
	want := map[digest.Digest]bool{}
	for _, d := range f.kept {
		want[d] = true
	}
	got := map[digest.Digest]bool{}
	for info, err := range s.In(one).List(t.Context()) {
		must(t, err)
		got[info.Digest] = true
	}
	if !maps.Equal(got, want) {
		t.Errorf("%s: %d blobs stay, want %d", when, len(got), len(want))
	}
	if all, err := s.In(one).ListStatuses(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("%s: ingests %v, %v", when, all, err)
	}
	checkFiles(t, s, when+", collected again")
}
