package gctest

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/gantryd/gantry/services/gc"
)

// check compares the owners with what clients were told.
func (w *World) check() {
	needed := w.Model.needed()
	for k := range SimObjects {
		has, err := w.driver(k).Has(w.Context(), w.Name(k))
		w.Must("Has", err)
		switch {
		case has == (w.Model.Objects[k] != nil):
		case has:
			w.Errorf("%d is there, and nobody made it", k)
		case needed[k]:
			w.Errorf("%d is gone, and is needed", k)
		default:
			w.Say("%d was collected", k)
			w.Model.collected(k)
		}
	}
	w.site.Check()
	if from, to := w.Model.lacking(); from >= 0 {
		w.Errorf("%d is there, and lacks %d, which was collected", from, to)
	}
}

// coordinate goes on with the cycle, or begins one.
func (w *World) coordinate() {
	if len(w.program) == 0 {
		w.c.Start()
		w.Say("cycle %d", w.c.Epoch)
		w.program = w.cycle()
	}
	next := w.program[0]
	w.program = w.program[1:]
	if err := next(w.Context()); err != nil || w.Rand.IntN(120) == 0 && !w.calm {
		w.Say("the cycle ends: %v", err)
		w.program = nil
		w.end(w.Context())
		if w.Rand.IntN(4) > 0 {
			w.pass() // else the next finds the owners held, or away
		}
	}
}

func (w *World) end(ctx context.Context) {
	err := w.c.End(ctx)
	w.Say("end %d: %v", w.c.Epoch, err)
}

func (w *World) cycle() (program []func(context.Context) error) {
	both := func(do func(context.Context, int) error) {
		for i := range w.c.Owners {
			program = append(program, func(ctx context.Context) error { return do(ctx, i) })
		}
	}
	both(w.c.BeginOne)
	program = append(program, func(context.Context) error { w.c.ReadLeases(); return nil })
	both(w.c.MarkOne)
	both(func(ctx context.Context, i int) error { return w.c.FreezeOne(ctx, i, gc.HoldMax) })
	return append(program, func(context.Context) error {
		for _, p := range w.c.Dead() {
			w.program = append(w.program, func(ctx context.Context) error {
				_, err := w.c.SweepPart(ctx, p)
				return err
			})
		}
		w.program = append(w.program, func(ctx context.Context) error { w.end(ctx); return nil })
		return nil
	})
}

// quiet lets nobody but the coordinator at work.
func (w *World) quiet() {
	w.calm = true
	w.now = max(w.now.Add(gc.HoldMax), w.away[0], w.away[1])
	w.site.Quiet()
	for range 2 {
		_, err := w.c.Cycle(w.Context())
		w.Must("Cycle", err)
		w.check()
	}
	needed := w.Model.needed()
	for k := range w.Model.Objects {
		if !needed[k] {
			w.Errorf("%d stays, and nobody needs it", k)
		}
	}
	w.site.End(needed)
}

var errLost = errors.New("the call was lost")

// A lossy is the wire between the coordinator and an owner.
type lossy struct {
	w  *World
	at int
}

func (l *lossy) owner() gc.Owner {
	if l.at == 0 {
		return l.w.site.Owner()
	}
	return l.w.memory
}

// call makes a call, or loses it before or after.
func (l *lossy) call(what string, do func() error) error {
	n := l.w.Rand.IntN(80)
	if l.w.calm {
		n = 2
	}
	if n == 0 || l.w.now < l.w.away[l.at] {
		l.w.Say("%s of owner %d is lost", what, l.at)
		return errLost
	}
	err := do()
	l.w.Say("%s of owner %d in %d: %v", what, l.at, l.w.c.Epoch, err)
	if n == 1 {
		l.w.Say("and its answer is lost")
		return errLost
	}
	return err
}

// Begin does not wait for the end of an older freeze: time stands still.
func (l *lossy) Begin(ctx context.Context, epoch gc.Epoch) error {
	return l.call("Begin", func() error {
		if l.w.now < l.w.held[l.at] {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, time.Millisecond)
			defer cancel()
		}
		l.w.frozen[l.at] = 0
		return l.owner().Begin(ctx, epoch)
	})
}

func (l *lossy) Mark(ctx context.Context, epoch gc.Epoch) iter.Seq2[gc.Object, error] {
	return l.stream("Mark", l.owner().Mark(ctx, epoch), func() {})
}

func (l *lossy) Freeze(ctx context.Context, epoch gc.Epoch, deadline gc.Instant) iter.Seq2[gc.Object, error] {
	return l.stream("Freeze", l.owner().Freeze(ctx, epoch, deadline), func() {
		l.w.held[l.at], l.w.kept[l.at], l.w.frozen[l.at] = deadline, deadline, epoch
	})
}

// stream yields what an owner answered, once it has answered all.
func (l *lossy) stream(what string, from iter.Seq2[gc.Object, error], then func()) iter.Seq2[gc.Object, error] {
	return func(yield func(gc.Object, error) bool) {
		var all []gc.Object
		if err := l.call(what, func() error {
			for o, err := range from {
				if err != nil {
					return err
				}
				all = append(all, o)
			}
			then()
			return nil
		}); err != nil {
			yield(gc.Object{}, err)
			return
		}
		for _, o := range all {
			if !yield(o, nil) {
				return
			}
		}
	}
}

func (l *lossy) Sweep(ctx context.Context, epoch gc.Epoch, dead []gc.Node) (n int, err error) {
	l.w.heard = append(l.w.heard, func(ctx context.Context) {
		n, err := l.owner().Sweep(ctx, epoch, dead)
		l.w.Say("Sweep of owner %d in %d: %d, %v", l.at, epoch, n, err)
	})
	err = l.call("Sweep", func() error {
		n, err = l.owner().Sweep(ctx, epoch, dead)
		return err
	})
	return n, err
}

func (l *lossy) End(ctx context.Context, epoch gc.Epoch) error {
	return l.call("End", func() error {
		if l.w.frozen[l.at] == epoch {
			l.w.held[l.at], l.w.frozen[l.at] = 0, 0
		}
		return l.owner().End(ctx, epoch)
	})
}
