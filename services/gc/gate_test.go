package gc

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/lease"
)

func testNode(i int) Node {
	return Node{Namespace: "ns", Resource: lease.Resource{Type: lease.TypeIngests, ID: fmt.Sprint(i)}}
}

func noKeep(context.Context) error { return nil }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func enter(t *testing.T, g *Gate) {
	t.Helper()
	must(t, g.Enter(t.Context()))
}

func wantPrecondition(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("%s: %v", what, err)
	}
}

// TestTooManyNotesEndTheCycle: memory is bounded, and writers go on.
func TestTooManyNotesEndTheCycle(t *testing.T) {
	g := NewGate(Now)
	must(t, g.Begin(t.Context(), 1))
	for i := range NotesMax {
		g.Note(testNode(i))
		g.Note(testNode(i))
	}
	must(t, g.Check(1))
	g.Note(testNode(NotesMax))
	if len(g.notes) > 0 || g.Noting() {
		t.Errorf("%d notes are kept", len(g.notes))
	}
	wantPrecondition(t, "Check", g.Check(1))
	_, err := g.Freeze(t.Context(), 1, Now().Add(time.Second), noKeep)
	wantPrecondition(t, "Freeze", err)
	enter(t, g)
	g.Leave()
	must(t, g.Begin(t.Context(), 2))
	must(t, g.Check(2))
}

// TestACycleThatNobodyFinishesIsForgotten: its coordinator is gone.
func TestACycleThatNobodyFinishesIsForgotten(t *testing.T) {
	now := Now()
	g := NewGate(func() Instant { return now })
	must(t, g.Begin(t.Context(), 1))
	g.Note(testNode(1))
	now = now.Add(CycleMax + 1)
	wantPrecondition(t, "Check", g.Check(1))
	g.Note(testNode(2))
	if g.Noting() {
		t.Error("notes are kept")
	}
}

// TestBeginWaitsForWhoIsInside: they may have looked for a cycle before there
// was one, and what they change is seen later.
func TestBeginWaitsForWhoIsInside(t *testing.T) {
	g := NewGate(Now)
	enter(t, g)
	begun := make(chan error, 1)
	go func() { begun <- g.Begin(t.Context(), 1) }()
	for shut := false; !shut; {
		g.mu.Lock()
		shut = g.shut != nil
		g.mu.Unlock()
	}
	if g.Noting() {
		t.Error("begun while somebody is inside")
	}
	g.Leave()
	must(t, <-begun)
	if !g.Noting() {
		t.Error("not begun")
	}
}

// TestWhoDoesNotLeaveStopsTheCycle: and is not waited for past the deadline.
func TestWhoDoesNotLeaveStopsTheCycle(t *testing.T) {
	g := NewGate(Now)
	must(t, g.Begin(t.Context(), 1))
	enter(t, g)
	_, err := g.Freeze(t.Context(), 1, Now().Add(50*time.Millisecond), noKeep)
	wantPrecondition(t, "Freeze", err)
	enter(t, g) // nobody is held
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := g.Freeze(ctx, 1, Now().Add(HoldMax), noKeep); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Freeze: %v", err)
	}
	enter(t, g)
	for range 3 {
		g.Leave()
	}
	_, err = g.Freeze(t.Context(), 1, Now().Add(HoldMax), noKeep)
	must(t, err)
}

// TestWhatKeepsTheDeadlineMustNotFail: without it a restart would let writers
// in.
func TestWhatKeepsTheDeadlineMustNotFail(t *testing.T) {
	g := NewGate(Now)
	must(t, g.Begin(t.Context(), 1))
	broken := errors.New("broken")
	if _, err := g.Freeze(t.Context(), 1, Now().Add(HoldMax), func(context.Context) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("Freeze: %v", err)
	}
	enter(t, g)
	g.Leave()
}

// TestASweepThatIsLateHidesWhatItRemoves: what it has begun to remove is not to
// be found, writers are held until it is done, and the rest stays.
func TestASweepThatIsLateHidesWhatItRemoves(t *testing.T) {
	now := Now()
	g := NewGate(func() Instant { return now })
	must(t, g.Begin(t.Context(), 1))
	_, err := g.Freeze(t.Context(), 1, now.Add(time.Second), noKeep)
	must(t, err)
	dead := []Node{testNode(1), testNode(2), testNode(3)}
	n, err := g.Sweep(t.Context(), 1, dead, func(_ context.Context, rest []Node) (done, removed int, err error) {
		now = now.Add(600 * time.Millisecond)
		for _, n := range dead {
			if !g.Hidden(n) {
				t.Errorf("%v is to be found", n)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if err := g.Enter(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Enter: %v", err)
		}
		return 1, 1, nil
	})
	wantPrecondition(t, "Sweep", err)
	if n != 2 {
		t.Errorf("swept %d, want 2", n)
	}
	if g.Hidden(dead[2]) {
		t.Error("what stays is not to be found")
	}
	enter(t, g)
	g.Leave()
}

// TestEndWaitsForTheSweep: when it returns the sweep removes nothing more.
func TestEndWaitsForTheSweep(t *testing.T) {
	g := NewGate(Now)
	must(t, g.Begin(t.Context(), 1))
	_, err := g.Freeze(t.Context(), 1, Now().Add(HoldMax), noKeep)
	must(t, err)
	sweeping, goOn, ended := make(chan bool), make(chan bool), make(chan error, 1)
	swept := make(chan error, 1)
	go func() {
		_, err := g.Sweep(t.Context(), 1, []Node{testNode(1)}, func(context.Context, []Node) (int, int, error) {
			sweeping <- true
			<-goOn
			return 1, 1, nil
		})
		swept <- err
	}()
	<-sweeping
	go func() { ended <- g.End(t.Context(), 1) }()
	select {
	case <-ended:
		t.Error("ended while a sweep is at work")
	case goOn <- true:
	}
	must(t, <-swept)
	must(t, <-ended)
}

// TestACycleDoesNotOutliveItsRecords: what was marked is of records that are
// gone.
func TestACycleDoesNotOutliveItsRecords(t *testing.T) {
	g := NewGate(Now)
	must(t, g.Begin(t.Context(), 1))
	deadline := Now().Add(500 * time.Millisecond)
	_, err := g.Freeze(t.Context(), 1, deadline, noKeep)
	must(t, err)
	must(t, g.Apart(t.Context(), func() error {
		if early := deadline.Sub(Now()); early > 0 {
			t.Errorf("%v before others are done", early)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if err := g.Begin(ctx, 2); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Begin: %v", err)
		}
		return nil
	}))
	wantPrecondition(t, "Check", g.Check(1))
	_, err = g.Sweep(t.Context(), 1, []Node{testNode(1)}, nil)
	wantPrecondition(t, "Sweep", err)
}

// TestAHoldOfAnotherBootIsNone: its clock began anew.
func TestAHoldOfAnotherBootIsNone(t *testing.T) {
	for _, deadline := range []Instant{0, Now() - 1, Now().Add(HoldMax + time.Hour)} {
		g := NewGate(Now)
		g.Hold(deadline)
		enter(t, g)
	}
	g := NewGate(Now)
	g.Hold(Now().Add(30 * time.Millisecond))
	enter(t, g)
}

// BenchmarkEnter is what every writer pays while there is no cycle.
func BenchmarkEnter(b *testing.B) {
	g := NewGate(Now)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if err := g.Enter(b.Context()); err != nil {
				b.Fatal(err)
			}
			if g.Noting() {
				b.Error("notes without a cycle")
			}
			g.Leave()
		}
	})
}
