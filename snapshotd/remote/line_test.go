package remote

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

func TestALineRestsWhenNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine("theirs")
		asked := 0
		var answer error
		call := func() error {
			return l.call(t.Context(), time.Minute, func(context.Context) error { asked++; return answer })
		}
		answer = errdefs.ErrUnavailable
		for range 10 {
			if err := call(); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "snapshotter theirs does not answer") {
				t.Errorf("call: %v", err)
			}
		}
		if asked != failuresMax {
			t.Errorf("it was asked %d times, want %d", asked, failuresMax)
		}
		<-time.After(restTime)
		if call(); asked != failuresMax+1 {
			t.Errorf("after a rest it was asked %d times, want one more than %d", asked, failuresMax)
		}
		<-time.After(restTime)
		answer = errdefs.ErrNotFound // which is an answer
		if err := call(); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("call: %v", err)
		}
		answer = nil
		for range 10 {
			if err := call(); err != nil {
				t.Errorf("call: %v", err)
			}
		}
	})
}

func TestACallThatHangsEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine("theirs")
		hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		began := time.Now()
		err := l.call(t.Context(), time.Minute, hang)
		if took := time.Since(began); !errors.Is(err, errdefs.ErrUnavailable) || took != time.Minute {
			t.Errorf("it ends with %v after %v", err, took)
		}
		// Who gives up himself says nothing of the other end.
		for range 10 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := l.call(ctx, time.Minute, hang); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("it ends with %v", err)
			}
			cancel()
		}
		if err := l.call(t.Context(), time.Minute, func(context.Context) error { return nil }); err != nil {
			t.Errorf("then: %v", err)
		}
	})
}

func TestCallsUnderWayAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine("theirs")
		var under atomic.Int64
		done := make(chan error)
		for range 3 * callsMax {
			go func() {
				done <- l.call(t.Context(), time.Hour, func(ctx context.Context) error {
					if under.Add(1) > callsMax {
						t.Error("too many calls are under way")
					}
					<-time.After(time.Second)
					under.Add(-1)
					return nil
				})
			}()
			synctest.Wait()
		}
		for range 3 * callsMax {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}
