package netd

import (
	"fmt"
	"testing"

	"github.com/gantryd/gantry/services/network"
	"github.com/gantryd/gantry/services/task"
)

var webLabels = map[string]string{network.LabelNetwork: "default", network.LabelPorts: "8080:80,53:53/udp", "app": "web"}

// cuts calls try with netd killed before its first step, after it, before its
// second, and so on, until it lives to its end.
func cuts(t *testing.T, try func(t *testing.T, at int, after bool) (lived bool)) {
	for at := 1; ; at++ {
		lived := false
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("step %d after %t", at, after), func(t *testing.T) { lived = try(t, at, after) })
		}
		if lived || t.Failed() {
			t.Logf("%d steps", at-1)
			return
		}
	}
}

// TestCrashOfAnAttach kills netd at every step of connecting a container. The
// container starts only if it was told to, and only connected; the next netd
// goes on as if nothing had been, and at the end nothing is left.
func TestCrashOfAnAttach(t *testing.T) {
	cuts(t, func(t *testing.T, at int, after bool) bool {
		w := newWorld(t)
		web := key{"one", "web"}
		q := w.start(web, 10, webLabels)
		w.cut(at, after)
		s, err := w.tryOpen()
		if err == nil {
			err = s.Pass(t.Context(), q)
		}
		lived, trail := !w.dead, w.trail
		if err == nil {
			w.connected(web)
		}
		w.cut(0, false)

		// What was told to start runs on, whatever netd is doing.
		if err == nil {
			w.status(web, task.Running)
		}
		s = w.open()
		if settled := settleAll(t, s); settled != nil {
			t.Errorf("settle: %v", settled)
		}
		if err == nil {
			w.connected(web)
			w.want(1)
		}
		// It is asked again, by who heard nothing.
		if again := s.Pass(t.Context(), q); again != nil {
			t.Errorf("again: %v", again)
		}
		w.connected(web)
		w.want(1)

		w.deleteTask(web)
		if err := settleAll(t, w.open()); err != nil {
			t.Errorf("settle at the end: %v", err)
		}
		w.want(0)
		if got := w.labels(web); got[network.LabelAddresses] != "" || got["app"] != "web" {
			t.Errorf("labels are %v at the end", got)
		}
		if t.Failed() {
			t.Logf("steps %q, attach said %v", trail, err)
		}
		return lived
	})
}

// TestCrashOfADetach kills netd at every step of disconnecting a container
// whose task has ended, and the next one at every step of what is left to do.
func TestCrashOfADetach(t *testing.T) {
	cuts(t, func(t *testing.T, at int, after bool) bool {
		w := newWorld(t)
		web := key{"one", "web"}
		q := w.start(web, 10, webLabels)
		if err := w.open().Pass(t.Context(), q); err != nil {
			t.Fatal(err)
		}
		w.status(web, task.Stopped)
		lived := true
		// The second life ends one step later than the first.
		for life := range 2 {
			w.cut(at+life, after)
			if s, err := w.tryOpen(); err == nil {
				_ = settleAll(t, s)
			}
			lived = lived && !w.dead
		}
		trail := w.trail
		w.cut(0, false)

		// A new task of the container gets a connection of its own.
		w.deleteTask(web)
		q = w.start(web, 11, webLabels)
		s := w.open()
		if err := s.Pass(t.Context(), q); err != nil {
			t.Errorf("attach anew: %v", err)
		}
		w.connected(web)
		w.want(1)
		w.deleteTask(web)
		if err := settleAll(t, s); err != nil {
			t.Error(err)
		}
		w.want(0)
		if t.Failed() {
			t.Logf("steps %q", trail)
		}
		return lived
	})
}

// TestCrashOfAReplacement kills netd at every step of connecting a task while
// the container's earlier task is still connected.
func TestCrashOfAReplacement(t *testing.T) {
	cuts(t, func(t *testing.T, at int, after bool) bool {
		w := newWorld(t)
		web := key{"one", "web"}
		if err := w.open().Pass(t.Context(), w.start(web, 10, webLabels)); err != nil {
			t.Fatal(err)
		}
		q := w.start(web, 11, webLabels)
		w.cut(at, after)
		s, err := w.tryOpen()
		if err == nil {
			err = s.Pass(t.Context(), q)
		}
		lived, trail := !w.dead, w.trail
		w.cut(0, false)
		if err == nil {
			w.connected(web)
		}
		s = w.open()
		if err := settleAll(t, s); err != nil {
			t.Error(err)
		}
		if err := s.Pass(t.Context(), q); err != nil {
			t.Errorf("again: %v", err)
		}
		w.connected(web)
		w.want(1)
		if t.Failed() {
			t.Logf("steps %q", trail)
		}
		return lived
	})
}

// TestPowerLossLeaksNoAddress cuts the power at every step of a container's
// life on a network. Whatever address was given out by then is given back.
func TestPowerLossLeaksNoAddress(t *testing.T) {
	cuts(t, func(t *testing.T, at int, after bool) bool {
		w := newWorld(t)
		web := key{"one", "web"}
		q := w.start(web, 10, webLabels)
		w.cut(at, after)
		s, err := w.tryOpen()
		if err == nil && s.Pass(t.Context(), q) == nil {
			w.status(web, task.Stopped)
			_ = settleAll(t, s)
		}
		lived, trail := !w.dead, w.trail
		w.blackout()
		w.cut(0, false)
		if err := settleAll(t, w.open()); err != nil {
			t.Error(err)
		}
		w.want(0)
		if _, told := w.labels(web)[network.LabelAddresses]; told && len(w.addresses) == 0 {
			t.Error("an address is told that nobody has")
		}
		if t.Failed() {
			t.Logf("steps %q", trail)
		}
		return lived
	})
}
