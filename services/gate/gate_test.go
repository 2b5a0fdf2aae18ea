package gate_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/gate/gatetest"
)

func TestNames(t *testing.T) {
	for _, c := range []struct {
		labels []string
		want   []string
	}{
		{nil, nil},
		{[]string{"network"}, []string{"network"}},
		{[]string{"network, audit", "audit,b.c"}, []string{"audit", "b.c", "network"}},
	} {
		var labels []map[string]string
		for _, value := range c.labels {
			labels = append(labels, map[string]string{gate.Label: value, "x": "y"})
		}
		got, err := gate.Names(append(labels, nil)...)
		if err != nil || !cmp.Equal(got, c.want) {
			t.Errorf("%q: %q, %v; want %q", c.labels, got, err, c.want)
		}
	}
	for _, bad := range []string{"", ",", "a,,b", "a b", "*", "a.>", "a\x00", "a/b", strings.Repeat("a", 77), strings.Repeat("a,", 999) + "a b"} {
		if names, err := gate.Names(map[string]string{gate.Label: bad}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%.20q: %q, %v", bad, names, err)
		}
	}
	if _, err := gate.Names(map[string]string{gate.Label: "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q"}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("17 gates: %v", err)
	}
}

var request = gate.Request{Namespace: "one", Container: "c1", Pid: 7}

// an asker that is a function.
type asker func(ctx context.Context) error

func (a asker) Ask(ctx context.Context, _ string, _ gate.Request) error { return a(ctx) }

func silent(ctx context.Context, _ gate.Request) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestPatience(t *testing.T) {
	patience := gate.Patience{Answer: 30 * time.Second, Absent: 10 * time.Second}
	deny := gate.Func(func(context.Context, gate.Request) error { return errors.New("never") })
	pass := gate.Func(func(context.Context, gate.Request) error { return nil })
	for _, c := range []struct {
		name  string
		do    func(m *gatetest.Memory) // beside the question
		began gate.Gate
		want  error
		says  string
		after time.Duration // at most
	}{
		{name: "passes", began: pass},
		{name: "denies", began: deny, want: errdefs.ErrFailedPrecondition, says: "never"},
		{name: "nobody", want: errdefs.ErrAborted, says: "nobody answers gate network", after: 11 * time.Second},
		{name: "slow", began: gate.Func(silent), want: errdefs.ErrAborted, says: "did not answer within 30s", after: 30 * time.Second},
		{name: "comes late", do: func(m *gatetest.Memory) {
			<-time.After(9 * time.Second)
			m.Serve("network", pass)
		}, after: 10 * time.Second},
		{name: "takes its time, once", began: gate.Func(func(ctx context.Context, _ gate.Request) error {
			select {
			case <-time.After(25 * time.Second):
			case <-ctx.Done():
			}
			return ctx.Err()
		}), after: 25 * time.Second},
		{name: "ends with the question and is replaced", began: gate.Func(silent), do: func(m *gatetest.Memory) {
			<-time.After(500 * time.Millisecond)
			m.Serve("network", pass)
		}, after: time.Second},
		{name: "ends with the question and comes late", began: gate.Func(silent), do: func(m *gatetest.Memory) {
			m.Serve("network", deny)()
			<-time.After(8 * time.Second)
			m.Serve("network", pass)
		}, after: 9 * time.Second},
		{name: "ends late with the question and is replaced", began: gate.Func(silent), do: func(m *gatetest.Memory) {
			<-time.After(20 * time.Second)
			m.Serve("network", pass)
		}, after: 24 * time.Second},
		{name: "ends with the question for good", began: gate.Func(silent), do: func(m *gatetest.Memory) {
			<-time.After(500 * time.Millisecond)
			m.Serve("network", deny)()
		}, want: errdefs.ErrAborted, says: "nobody answers gate network", after: 12 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := gatetest.NewMemory()
				if c.began != nil {
					m.Serve("network", c.began)
				}
				if c.do != nil {
					go func() { synctest.Wait(); c.do(m) }()
				}
				began := time.Now()
				err := patience.Ask(t.Context(), m, "network", request)
				if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.says) {
					t.Errorf("Ask: %v, want %v that says %q", err, c.want, c.says)
				}
				if d := time.Since(began); d > c.after {
					t.Errorf("it took %v", d)
				}
			})
		})
	}
}

func TestPatienceEndsWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		asked := 0
		err := gate.Patience{Answer: time.Minute, Absent: time.Minute}.Ask(ctx, asker(func(ctx context.Context) error {
			asked++
			return errdefs.ErrUnavailable
		}), "network", request)
		if !errors.Is(err, context.DeadlineExceeded) || asked > 20 {
			t.Errorf("Ask: %v, asked %d times", err, asked)
		}
		err = gate.Patience{Answer: time.Minute, Absent: time.Second}.Ask(t.Context(), asker(func(context.Context) error {
			return errdefs.ErrUnavailable
		}), "network", request)
		if !errors.Is(err, errdefs.ErrAborted) || !strings.Contains(err.Error(), "cannot be asked") {
			t.Errorf("without a bus: %v", err)
		}
	})
}
