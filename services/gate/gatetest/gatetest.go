// Package gatetest holds the promises of [gate.Asker] and gates in memory that
// keep them.
package gatetest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/gantryd/gantry/services/gate"
)

// A Wall is what gates are in, with both its sides.
type Wall struct {
	gate.Asker

	// Serve has a gate answer by a name when it returns, until stop returns.
	Serve func(t *testing.T, name string, g gate.Gate) (stop func())
}

// Run tests the walls that open returns. It calls open once per promise and
// expects a wall without gates.
func Run(t *testing.T, open func(t *testing.T) Wall) {
	for _, p := range promises {
		t.Run(p.name, func(t *testing.T) { p.check(t, open(t)) })
	}
}

var promises = []struct {
	name  string
	check func(*testing.T, Wall)
}{
	{"a gate is asked what it is asked", asked},
	{"a gate denies with its reason, in one line", denies},
	{"a gate by whose name nobody answers is not found", absent},
	{"a gate that stopped is not found, and found again", returns},
	{"a bad name and a bad request are refused", refused},
	{"gates whose names have dots are apart", dots},
	{"who asks a gate that does not answer waits for his context", slow},
	{"many ask one gate at once", many},
}

// patience is how long a test waits for anything.
const patience = 20 * time.Second

var request = gate.Request{
	Namespace: "one", Container: "c1", Pid: 4711,
	Labels: map[string]string{"app": "web", "odd": "\"<&>\n\x01é"},
}

func pass(context.Context, gate.Request) error { return nil }

func wantKind(t *testing.T, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("the answer is %v, want %v", err, kind)
	}
}

func asked(t *testing.T, w Wall) {
	got := make(chan gate.Request, 1)
	defer w.Serve(t, "network", gate.Func(func(_ context.Context, r gate.Request) error {
		got <- r
		return nil
	}))()
	if err := w.Ask(t.Context(), "network", request); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(request, <-got); d != "" {
		t.Errorf("it was asked (-want +got):\n%s", d)
	}
}

func denies(t *testing.T, w Wall) {
	for said, want := range map[string]string{
		"no address is left":          "no address is left",
		"two\nlines\x1b[31m\x00, red": "two lines [31m , red",
		"":                            "no reason is given",
		strings.Repeat("long ", 1000): "long long",
	} {
		stop := w.Serve(t, "network", gate.Func(func(context.Context, gate.Request) error { return errors.New(said) }))
		err := w.Ask(t.Context(), "network", request)
		stop()
		wantKind(t, err, errdefs.ErrFailedPrecondition)
		if text := err.Error(); !strings.Contains(text, want) || !strings.Contains(text, "network") || strings.ContainsAny(text, "\n\x1b\x00") || len(text) > 1024 {
			t.Errorf("it said %.40q, and the error is %.1100q", said, text)
		}
	}
}

func absent(t *testing.T, w Wall) {
	defer w.Serve(t, "other", gate.Func(pass))()
	wantKind(t, w.Ask(t.Context(), "network", request), errdefs.ErrNotFound)
}

func returns(t *testing.T, w Wall) {
	for range 3 {
		stop := w.Serve(t, "network", gate.Func(pass))
		if err := w.Ask(t.Context(), "network", request); err != nil {
			t.Errorf("a gate that passes: %v", err)
		}
		stop()
		wantKind(t, w.Ask(t.Context(), "network", request), errdefs.ErrNotFound)
	}
}

func refused(t *testing.T, w Wall) {
	defer w.Serve(t, "network", gate.Func(pass))()
	for _, name := range []string{"", ".", "*", ">", "a.*", "a b", "a\r\nPUB x 0", "../x", strings.Repeat("a", 77)} {
		wantKind(t, w.Ask(t.Context(), name, request), errdefs.ErrInvalidArgument)
	}
	for _, r := range []gate.Request{
		{Container: "c1", Pid: 1},
		{Namespace: "one", Pid: 1},
		{Namespace: "one", Container: "c1"},
		{Namespace: "a/b", Container: "c1", Pid: 1},
		{Namespace: "one", Container: "c1", Pid: -1},
	} {
		wantKind(t, w.Ask(t.Context(), "network", r), errdefs.ErrInvalidArgument)
	}
}

func dots(t *testing.T, w Wall) {
	defer w.Serve(t, "a.b", gate.Func(pass))()
	wantKind(t, w.Ask(t.Context(), "a", request), errdefs.ErrNotFound)
	wantKind(t, w.Ask(t.Context(), "a.c", request), errdefs.ErrNotFound)
	if err := w.Ask(t.Context(), "a.b", request); err != nil {
		t.Errorf("a.b: %v", err)
	}
}

func slow(t *testing.T, w Wall) {
	leave := make(chan struct{})
	defer w.Serve(t, "network", gate.Func(func(context.Context, gate.Request) error {
		<-leave
		return nil
	}))()
	defer close(leave)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	wantKind(t, w.Ask(ctx, "network", request), context.DeadlineExceeded)
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	wantKind(t, w.Ask(ctx, "network", request), context.Canceled)
}

func many(t *testing.T, w Wall) {
	defer w.Serve(t, "network", gate.Func(func(_ context.Context, r gate.Request) error {
		if r.Pid%2 == 0 {
			return errors.New("even")
		}
		return nil
	}))()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var wg sync.WaitGroup
	for pid := 1; pid <= 200; pid++ {
		wg.Go(func() {
			r := request
			r.Pid = pid
			if err := w.Ask(ctx, "network", r); errors.Is(err, errdefs.ErrFailedPrecondition) != (pid%2 == 0) || err != nil && pid%2 == 1 {
				t.Errorf("pid %d: %v", pid, err)
			}
		})
	}
	wg.Wait()
}
